"""MLflow's tables."""
