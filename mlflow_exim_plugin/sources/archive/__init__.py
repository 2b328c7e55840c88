"""Source `archive`."""
