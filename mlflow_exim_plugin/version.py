"""The package's version, which archives name; at the bottom of the house, importing nothing."""

__version__ = "0.3.0.dev0"
