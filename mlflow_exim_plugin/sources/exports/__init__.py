"""Exports of mlflow-export-import: folders of JSON files and artifacts."""
