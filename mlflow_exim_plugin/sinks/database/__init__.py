"""Sink `database`: MLflow's tables, with ids and times."""
