"""The kinds whose objects are one document, by MLflow's API."""
