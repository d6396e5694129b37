"""Defines priors, which compute item weights without the policy, for example from counts of how often one item follows
another.

A prior is any object with a method `weights(histories)` that returns the [`ItemWeights`] of a batch of histories.
[`rank_histories`], [`Policy`] and [`Recommender`] accept a prior and multiply the policy's probabilities by the
weights of the prior, raised to the power `strength`.
"""

from trl_rec.decoding.priors.base import Prior
from trl_rec.decoding.priors.counted import PopularityPrior, TransitionPrior
from trl_rec.decoding.priors.files import PRIOR
from trl_rec.decoding.priors.fitted import FittedPrior, SavedPrior, fit_prior, load_prior
from trl_rec.decoding.priors.mixture import MixturePrior
from trl_rec.decoding.priors.own import ArrayPrior, FunctionPrior, as_prior


__all__ = [
    "PRIOR",
    "ArrayPrior",
    "FittedPrior",
    "FunctionPrior",
    "MixturePrior",
    "PopularityPrior",
    "Prior",
    "SavedPrior",
    "TransitionPrior",
    "as_prior",
    "fit_prior",
    "load_prior",
]
