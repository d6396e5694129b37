"""Builds rows in which every item of a history is a target: a trunk, and one branch per target."""
