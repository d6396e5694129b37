"""The files of a run: checkpoints with a fingerprint, recipe, model card, output folder, and files to be published."""
