"""Whether an archive is sound, and whose it is."""
