"""Config fields of trainers that can multiply the trained model by a prior at the end of a run."""

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
        prior (`str`, *optional*, defaults to `"none"`): A prior to multiply the trained model by at the end of a run:
            `"popularity"`, `"transition"` or `"mixture"`. The prior is kept in the run folder, where [`Recommender`]
            finds it. The model, the prior alone, and their product are evaluated. Training does not use the prior.
            `None` is the same as `"none"`.
        prior_strength (`str`, *optional*, defaults to `"auto"`): Exponent of the prior, as a number. With `"auto"`,
            [`choose_prior`] chooses the exponent on the validation split.
    """

    may_change = (*RecConfig.may_change, "prior", "prior_strength")

    prior: PriorKind | None = field(
        default="none",
        metadata={
            "help": "prior to multiply the trained model by, kept in the run folder: popularity, transition, mixture "
            "or none"
        },
    )
    prior_strength: str = field(
        default=AUTO,
        metadata={"help": "exponent of the prior: a number, or auto, which chooses it on the validation split"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prior = self.prior or "none"
        check_prior(self.prior, self.prior_strength)


def wants_prior(config: object) -> TypeGuard[PriorConfig]:
    """Returns whether the configuration of a trainer asks for a prior."""
    return isinstance(config, PriorConfig) and config.prior != "none"
