"""Artifact trees."""
