"""Rows in which every item of a history is a target: one text, and one branch per target."""
