"""Evaluates a prior alone and its product with a policy. Each of the two gets a row in the table of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trl_rec.evaluation.policy import Policy, evaluate_policy
from trl_rec.evaluation.results import Evaluation, evaluate_split, further_cutoff, held_out, recall_far_down
from trl_rec.evaluation.rewards import ListReward


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset
    from trl_rec.decoding.priors import Prior

PRIOR_ROW = "prior"  # name of the row of the prior alone


def product_row(name: str) -> str:
    """Returns the name of the product in the results. `name` is the name of the policy alone."""
    return f"{name} x {PRIOR_ROW}"


def evaluate_product(
    policy: Policy,
    prior: Prior,
    dataset: RecDataset,
    name: str,
    *,
    split: str = "test",
    ks: Sequence[int] = (1, 5, 10),
    recall_at: int | None = None,
    rewards: Mapping[str, float] | None = None,
    reward_functions: Mapping[str, ListReward] | None = None,
    seed: int = 0,
) -> dict[str, Evaluation]:
    """Evaluates a prior alone, and the product of a policy and the prior.

    Args:
        policy ([`Policy`]): The policy.
        prior ([`Prior`]): The prior, with its strength.
        dataset (`RecDataset`): The dataset.
        name (`str`): Name of the policy in the results.
        split, ks, recall_at, rewards, reward_functions, seed (*optional*): As in [`evaluate_policy`].

    Returns:
        `dict[str, Evaluation]`: the evaluations of `"prior"` and of `"<name> x prior"`.
    """
    product = replace(policy, prior=prior)
    rows = held_out(dataset, split)

    # 1. Rank by the prior. This needs no beam search, so one pass serves the cutoffs `ks` and `recall_at`.
    further = further_cutoff(recall_at, ks, len(dataset.catalog))
    ranked = product.rank_by_prior(rows, further or max(ks))
    alone = evaluate_split(
        ranked.head(max(ks)),
        dataset,
        split=split,
        ks=ks,
        rewards=rewards,
        reward_functions=reward_functions,
        seed=seed,
    ).with_values(recall_far_down(ranked, rows, further), seed=seed)

    # 2. Rank by the product.
    both = evaluate_policy(
        product,
        dataset,
        split=split,
        ks=ks,
        recall_at=recall_at,
        rewards=rewards,
        reward_functions=reward_functions,
        seed=seed,
    )
    return {PRIOR_ROW: alone, product_row(name): both}
