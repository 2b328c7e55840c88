"""What is in an archive, by whatever name it is asked for."""
