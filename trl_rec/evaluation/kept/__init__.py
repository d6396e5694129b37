"""Writes an evaluation to a folder, and reads it back: results, values per user, ranked items and environment."""
