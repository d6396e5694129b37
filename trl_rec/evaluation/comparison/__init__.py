"""Compares evaluated runs. Groups runs that differ only in the seed into arms, tests paired differences, states
verdicts, compares slices of users, and computes the smallest difference that can be detected."""
