"""Experiments, runs, models and registries by MLflow's API."""
