"""Sink `archive`."""
