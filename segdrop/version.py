"""The package's version, for whoever writes it into a file."""

__version__ = "0.4.0"
