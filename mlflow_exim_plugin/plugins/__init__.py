"""What other programs load: thin adapters on what is below."""
