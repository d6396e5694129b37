"""Align3GR's semantic IDs for items and users: two towers, learned together from texts and interactions."""
