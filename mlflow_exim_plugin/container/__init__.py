"""Bytes: the seekable .tar.zst, without any knowledge of MLflow."""
