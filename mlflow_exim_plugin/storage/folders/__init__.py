"""Folders of files, on this machine or any fsspec store."""
