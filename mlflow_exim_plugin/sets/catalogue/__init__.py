"""Parquet tables that tell what the archives of a folder or set hold."""
