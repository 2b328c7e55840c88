"""Move and keep MLflow data: pack any part of a server into one open archive and put it back."""

__version__ = "0.1.0.dev0"
