"""Work in several tasks: how it is divided, and the engines that run them."""
