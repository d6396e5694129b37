"""Loads or fits the prior that a saved model is multiplied by, and sets the strength and eps of the prior.

The strength is the exponent of the prior. Some priors have an eps: they add eps times the popularity of an item to the
other terms of the item's weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl_rec.data.dataset import RecDataset
from trl_rec.decoding.priors import ArrayPrior, SavedPrior, fit_prior
from trl_rec.decoding.priors.fitted import AUTO, given_strength
from trl_rec.decoding.priors.run_folder import KEY as PRIOR_KEY
from trl_rec.decoding.priors.run_folder import load_run_prior
from trl_rec.decoding.run_folder import settings_of_run
from trl_rec.evaluation.policy import Policy
from trl_rec.evaluation.prior_choice import PriorChoice, choose_prior, given_choice
from trl_rec.evaluation.saved_model.config import SAVED_PRIOR, EvaluationConfig


def kind_and_strength(config: EvaluationConfig) -> tuple[str, float | None] | None:
    """Returns the kind and the given strength of the prior. The strength is None if it will be chosen on the
    validation split.

    Returns a single None if there is no prior, if a saved prior keeps its saved strength and eps, or if the settings
    in the run folder already show that [`load_prior`] will raise an error.

    Args:
        config: The settings, as returned by [`evaluation_settings`].
    """
    if config.prior in (None, "none") or keeps_saved_setting(config):
        return None
    strength = given_strength(config.prior_strength or AUTO)
    if config.prior != SAVED_PRIOR:
        return config.prior, strength

    described = settings_of_run(config.folder).get(PRIOR_KEY)
    kind = described.get("kind") if isinstance(described, dict) else None
    if kind is None or (kind == ArrayPrior.kind and strength is None):
        return None  # `load_prior` will raise an error
    return str(kind), strength


def keeps_saved_setting(config: EvaluationConfig) -> bool:
    """Returns whether the saved prior is used with the strength and eps that were saved with it."""
    return config.prior == SAVED_PRIOR and config.prior_strength is None


def load_prior(model_name: str, dataset: RecDataset, config: EvaluationConfig) -> SavedPrior | None:
    """Loads or fits the prior, or returns None if no prior is used.

    Raises `ValueError` if `config.prior` is `"saved"` and the run folder contains no prior. Also raises it if the
    saved prior is an array of weights and `config.prior_strength` is `"auto"`.
    """
    if config.prior in (None, "none"):
        return None
    if config.prior != SAVED_PRIOR:
        return fit_prior(config.prior, dataset, exclude_history=config.exclude_history)

    saved = load_run_prior(model_name, settings_of_run(model_name), len(dataset.catalog))
    if saved is None:
        raise ValueError(f"{model_name} does not contain a prior; choose another prior, or leave prior out")
    if isinstance(saved, ArrayPrior) and config.prior_strength == AUTO:
        raise ValueError(
            f"prior_strength=auto cannot be used here, because the prior in {model_name} is an array of weights; give "
            "prior_strength a number, or leave it out"
        )
    return saved


def choose_setting(
    policy: Policy,
    prior: SavedPrior,
    dataset: RecDataset,
    config: EvaluationConfig,
    recorded: Mapping[str, Any] | None,
) -> tuple[SavedPrior, PriorChoice]:
    """Returns the prior with its strength and eps set, and the [`PriorChoice`].

    If `config.prior_strength` is a number, the prior gets this strength and keeps its eps. There is one exception: if
    `recorded` has the same kind of prior and the same strength, the recorded eps is used. If `config.prior_strength`
    is not a number, the strength and eps that are best on the validation split are used.

    Args:
        policy: The policy, without a prior.
        prior: The prior.
        dataset: The dataset, with its whole validation split.
        config: The settings, as returned by [`evaluation_settings`].
        recorded: The [`PriorChoice`] of an earlier evaluation, read from the output folder by [`read_choice`].
    """
    strength = given_strength(config.prior_strength or AUTO)
    k = max(config.ks)
    if strength is not None:
        return given_choice(prior, strength, k, recorded=recorded)
    assert not isinstance(prior, ArrayPrior), "refused by `load_prior`"
    return choose_prior(policy, dataset, prior, k=k, max_users=config.max_users)
