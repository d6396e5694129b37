"""Builds training rows of several tasks by filling the slots (placeholders) of prompt templates."""
