"""Defines the version of this package. Importing this module imports nothing else."""

__version__ = "0.1.0.dev0"
