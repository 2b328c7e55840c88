"""Traces by MLflow's API."""
