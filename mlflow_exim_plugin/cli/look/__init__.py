"""Commands that look into an archive."""
