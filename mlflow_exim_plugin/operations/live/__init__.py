"""An archive as a database that MLflow reads, and where that is kept."""
