"""Builds rows in which every item of a history is a target. See `structure.py` for the layout of a row."""
