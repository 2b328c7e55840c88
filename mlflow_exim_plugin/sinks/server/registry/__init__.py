"""Registered models and prompts of a deployment, with their versions and files."""
