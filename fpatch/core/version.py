"""The version of fpatch."""

__version__ = "0.1.0"
