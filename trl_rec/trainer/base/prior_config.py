"""Defines the config fields that choose a prior: weights of items that multiply the trained model's probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeGuard

from trl_rec.decoding.priors.fitted import AUTO, PriorKind, check_prior
from trl_rec.trainer.base.config import RecConfig


@dataclass
class PriorConfig(RecConfig):
    """Fields that choose a prior, in addition to the fields of [`RecConfig`].

    [`BladeConfig`] does not have these fields, because its own field `prior` is the parameter of a Beta prior. To
    multiply a model trained with BLADE by a prior, use `trl-rec evaluate --prior`.

    Args:
        prior (`str`, *optional*): A prior to multiply the trained model by at the end of a run: `"popularity"`,
            `"transition"`, `"mixture"` or `"none"`. The prior is kept in the run folder, where [`Recommender`] finds
            it. The model, the prior alone, and their product are evaluated. Training does not use the prior. By
            default, there is no prior, with one exception: if a training verb of `trl-rec` or [`build_bear_trainer`]
            continues an earlier run that has a prior, a prior of the same kind is fitted to the dataset of the new
            run (see [`continue_prior`]).
        prior_strength (`str`, *optional*, defaults to `"auto"`): Exponent of the prior, as a number. With `"auto"`,
            [`choose_prior`] chooses the exponent on the validation split and, for `"transition"` and `"mixture"`, also
            how much an item's popularity adds to its weight.
        include_prior (`bool`, *optional*, defaults to `False`): Whether `push_to_hub` pushes the prior, which contains
            counts of users' choices.
    """

    may_change = (*RecConfig.may_change, "prior", "prior_strength", "include_prior")

    prior: PriorKind | None = field(
        default=None,
        metadata={
            "help": "prior to multiply the trained model by, kept in the run folder: popularity, transition, mixture "
            "or none; defaults to the kind of prior in the run folder that the model comes from, if there is one"
        },
    )
    prior_strength: str = field(
        default=AUTO,
        metadata={"help": "exponent of the prior: a number, or auto, which chooses it on the validation split"},
    )

    include_prior: bool = field(default=False, metadata={"help": "push the prior to the hub beside the model"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._is_prior_open = self.prior is None
        self.prior = self.prior or "none"
        check_prior(self.prior, self.prior_strength)

    @property
    def is_prior_open(self) -> bool:
        """Whether the user has left `prior` unset, and [`~PriorConfig.take_prior`] has not set it either."""
        return self._is_prior_open

    def take_prior(self, kind: PriorKind, strength: str) -> None:
        """Sets a prior that the user has not chosen. `recipe.yaml` records the prior as if the user had chosen it."""
        self.prior = kind
        self.prior_strength = strength
        self._is_prior_open = False
        self.given.update({"prior": kind, **({} if strength == AUTO else {"prior_strength": strength})})


def wants_prior(config: object) -> TypeGuard[PriorConfig]:
    """Returns whether the configuration of a trainer asks for a prior."""
    return isinstance(config, PriorConfig) and config.prior != "none"
