"""Where the stream begins."""
