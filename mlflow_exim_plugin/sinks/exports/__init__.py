"""Exports in the layout of mlflow-export-import: folders of JSON files and artifacts."""
