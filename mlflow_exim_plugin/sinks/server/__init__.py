"""Sink `server`: a deployment by MLflow's API."""
