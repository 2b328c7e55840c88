"""Folders of files on servers that are no object stores."""
