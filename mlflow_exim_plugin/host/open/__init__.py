"""Finding and opening a deployment."""
