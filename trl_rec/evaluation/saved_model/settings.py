"""Fills in the unset fields of an `EvaluationConfig` from the run folder of the evaluated model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trl_rec.decoding.priors.run_folder import KEY as PRIOR_KEY
from trl_rec.decoding.run_folder import settings_of_run
from trl_rec.evaluation.saved_model.config import SAVED_PRIOR, EvaluationConfig


# Values for the fields of EvaluationConfig that neither the user nor the run folder of the model sets.
DEFAULTS: dict[str, Any] = {
    "surface": "title",
    "list_length": None,
    "num_beams": None,
    "length_penalty": 0.0,
    "renormalize": True,
    "max_length": None,
}


def evaluation_settings(config: EvaluationConfig) -> EvaluationConfig:
    """Returns a copy of `config` with unset fields filled in from the model's run folder, or else from `DEFAULTS`.

    Raises `ValueError` if settings contradict each other.
    """
    # 1. Fill in the unset fields. A run folder records the length of lists among the settings of the prompt.
    of_run = settings_of_run(config.folder)
    of_run["list_length"] = of_run.get("prompt", {}).get("list_length")
    unset = [name for name in DEFAULTS if getattr(config, name) is None]
    values: dict[str, Any] = {name: of_run.get(name, DEFAULTS[name]) for name in unset}
    values["prior"] = config.prior or (SAVED_PRIOR if of_run.get(PRIOR_KEY) is not None else "none")
    filled = replace(config, **values)

    # 2. Refuse settings that contradict each other.
    if filled.list_length is not None and max(filled.ks) > filled.list_length:
        raise ValueError(f"ks={filled.ks} contains a k above list_length={filled.list_length}; lower that k")
    if filled.best_of is not None and (filled.rewards is None or filled.list_length is None):
        raise ValueError("best_of chooses lists by their rewards; set rewards and list_length as well")
    if filled.exhaustive is not None and (filled.model is None or filled.list_length is not None):
        raise ValueError(
            "exhaustive scores every item of the catalogue with the model; "
            + ("set model as well" if filled.model is None else "this model writes lists, so leave exhaustive out")
        )
    return filled


def metric_options(config: EvaluationConfig) -> dict[str, Any]:
    """Returns the keyword arguments that [`evaluate_baselines`] and [`evaluate_policy`] have in common: the split, the
    options of the metrics, and the seed."""
    return {
        "split": config.split,
        "ks": config.ks,
        "recall_at": config.recall_at,
        "rewards": config.rewards,
        "seed": config.seed,
    }
