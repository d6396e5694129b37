"""Builds training rows with several targets of one sequence. See `structure.py` for the layout of a row."""
