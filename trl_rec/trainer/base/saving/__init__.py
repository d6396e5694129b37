"""Writes and checks the files of a run: checkpoints, their fingerprints, the recipe, the model card, and exports."""
