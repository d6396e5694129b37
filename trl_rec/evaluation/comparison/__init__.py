"""Compares evaluated runs: groups runs that differ only in the seed into arms, tests paired differences, states
verdicts, shows metrics for slices of users, and computes the smallest difference that can be detected."""
