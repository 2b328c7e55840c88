"""The package's version, which archives name; at the bottom of the house, importing nothing."""

__version__ = "0.2.0.dev0"
