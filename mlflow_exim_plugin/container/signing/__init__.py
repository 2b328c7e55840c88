"""Signatures of an archive, in files beside it."""
