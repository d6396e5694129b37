"""Defines the version of this package. `setup.cfg` reads it from this file, so the file imports nothing."""

__version__ = "0.1.0"
