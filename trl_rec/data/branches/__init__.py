"""Builds rows that train several targets of one sequence. See `structure.py` for the layout of a row."""
