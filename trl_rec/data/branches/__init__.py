"""Builds training rows in which several items of one sequence are targets. `structure.py` describes such a row."""
