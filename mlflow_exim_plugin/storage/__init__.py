"""Where files lie: paths and URLs of any fsspec store."""
