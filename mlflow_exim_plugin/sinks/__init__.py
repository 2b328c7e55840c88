"""Where the stream ends."""
