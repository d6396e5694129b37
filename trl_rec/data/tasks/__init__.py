"""Builds training rows of several tasks from prompt templates and the contents of their slots."""
