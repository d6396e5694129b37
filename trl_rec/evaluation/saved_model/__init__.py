"""Evaluates a saved model, or lists made elsewhere, and the baselines on the same rows.

`config.py` contains the configuration, and `settings.py` fills in its unset fields. `evaluating.py` evaluates the
baselines and the lists, and calls `model.py` and `prior.py` for the model. `writing.py` writes the results.
"""
