"""Writes an evaluation to a folder (results, values per user, ranked items and environment), and reads it from
there."""
