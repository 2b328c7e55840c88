"""The spec in code: documents, tables and rules. No I/O and no MLflow."""
