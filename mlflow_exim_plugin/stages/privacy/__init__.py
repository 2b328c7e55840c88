"""What is taken out on the way, and what finds it."""
