"""What changes the stream between a source and a sink."""
