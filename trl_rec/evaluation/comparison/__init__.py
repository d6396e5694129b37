"""Compares measured runs: arms of seeds, paired tests, verdicts, slices of users, and detectable differences."""
