"""Chooses the setting (strength and eps) of a prior: either the best setting on the validation split, or a given one.

A prior gives each item a weight, and the weights multiply the probabilities of the model. The strength is the exponent
of the weights, and eps is how much an item's popularity adds to its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl_rec.decoding.priors import FittedPrior
from trl_rec.evaluation.cost import say_cost
from trl_rec.evaluation.policy import Policy
from trl_rec.evaluation.prior_choice.grid import AnyPrior, Setting, best_setting, search_grid, with_setting
from trl_rec.evaluation.prior_choice.measuring import make_measure, num_measured, seconds_to_measure


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset


@dataclass(frozen=True)
class PriorChoice:
    """The chosen setting of a prior, and the measurements that led to the choice.

    Args:
        prior (`str`): The kind of prior.
        strength (`float`): The exponent of the prior's item weights.
        eps (`float`, *optional*): How much an item's popularity adds to its weight. None if the prior has no eps, or
            if strength 0 was chosen.
        metric (`str`): The metric by which the settings were compared.
        grid (`list[dict]`): The value of the metric on the validation split for every setting. Empty if the strength
            was given.
        num_users (`int`): Number of validation users. 0 if the strength was given.
        how (`str`): How settings were measured: `"exact"`, `"rescored"` or `"lists"`, as in [`make_measure`]. It is
            `"given"` if the strength was given.
        at_limit (`bool`): Whether the best setting is on an edge of the grid that could not be extended further.
    """

    prior: str
    strength: float
    eps: float | None
    metric: str
    grid: list[dict[str, Any]]
    num_users: int
    how: str
    at_limit: bool = False

    @property
    def setting(self) -> dict[str, Any]:
        """The kind, the strength and the eps of the prior, without the fields that describe how they were chosen."""
        return {"prior": self.prior, "strength": self.strength, "eps": self.eps}


def choose_prior(
    policy: Policy,
    dataset: RecDataset,
    prior: FittedPrior,
    *,
    k: int = 10,
    max_users: int | None = None,
) -> tuple[FittedPrior, PriorChoice]:
    """Chooses the setting of a prior with the highest NDCG@k on the validation split.

    If measuring takes long, the expected time is printed. If `policy.finished` is set, the results of rows are stored
    during the computation, so that an interrupted choice can be resumed.

    Args:
        policy (`Policy`): The policy, whose own prior is ignored.
        dataset (`RecDataset`): The dataset. Only its validation split is read.
        prior ([`FittedPrior`]): The prior. Its strength and eps are replaced by the chosen ones. Its own eps has an
            effect only if settings are measured by rescoring (see [`make_measure`]): it helps to select the items that
            are rescored.
        k (`int`, *optional*, defaults to `10`): The cutoff of the metric.
        max_users (`int`, *optional*): Maximum number of validation users. Whatever its value, at most 10,000 users are
            measured. This limit is 2,000 if items have more than one token, and 300 if the model writes lists.

    Returns:
        The prior with the chosen setting, and the choice. If several settings are equally good, the one with the
        lowest strength is chosen, and among those the one with the lowest eps.
    """
    seconds = seconds_to_measure(policy, dataset, k=k, max_users=max_users)
    say_cost(
        num_measured(policy, dataset, max_users),
        seconds,
        name="choice of the prior",
        remedy="set max_users to shorten it",
    )
    measure, how, num_users = make_measure(policy, dataset, prior, k=k, max_users=max_users)
    values, at_limit = search_grid(measure, has_eps=hasattr(prior, "eps"), one_axis_at_a_time=how == "lists")
    best = best_setting(values)
    grid = [{"strength": one.strength, "eps": one.eps, "value": values[one]} for one in values]
    choice = PriorChoice(prior.kind, best.strength, best.eps, f"ndcg@{k}", grid, num_users, how, at_limit)
    return with_setting(prior, best), choice


def given_choice(
    prior: AnyPrior, strength: float, k: int, *, recorded: Mapping[str, Any] | None = None
) -> tuple[AnyPrior, PriorChoice]:
    """Returns a prior with a given strength, and the [`PriorChoice`] that describes it.

    Args:
        prior ([`SavedPrior`]): The prior.
        strength (`float`): The strength.
        k (`int`): The cutoff of NDCG. It is only recorded in `PriorChoice.metric`; nothing is measured.
        recorded (*optional*): The choice of an earlier call, read from the output folder by [`read_choice`]. If the
            kind of prior and the strength of this choice equal the given ones, the recorded eps is used, so that the
            recorded setting is repeated exactly. Otherwise, the prior keeps its own eps.
    """
    # Use the recorded eps only if it is a valid value, because `choice.json` may have been edited.
    eps = getattr(prior, "eps", None)
    if recorded is not None and (recorded.get("prior"), recorded.get("strength")) == (prior.kind, strength):
        found = recorded.get("eps")
        eps = found if found is None or (isinstance(found, float | int) and found > 0) else eps
    choice = PriorChoice(prior.kind, strength, eps, f"ndcg@{k}", [], 0, "given")
    return with_setting(prior, Setting(strength, eps)), choice


def setting_in_words(setting: Mapping[str, Any]) -> str:
    """Returns the kind, the strength and the eps of a prior in words. The values may have any type."""
    eps = setting.get("eps")
    words = f"{setting.get('prior')} with strength {setting.get('strength')}"
    if eps is None:
        return words
    return f"{words} and eps {eps:g}" if isinstance(eps, int | float) else f"{words} and eps {eps!r}"
