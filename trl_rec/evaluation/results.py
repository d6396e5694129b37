"""The evaluation of rankings over a dataset's split, and of the baselines over the same split in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.evaluation.baselines import PopularityBaseline, RandomBaseline, TransitionBaseline
from trl_rec.evaluation.evaluator import evaluate_rankings, per_user_metrics
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.rewards import ListReward, score_split
from trl_rec.evaluation.training_log import TrainingLog


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one recommender reached on one split.

    Args:
        metrics (`dict[str, float]`): What [`evaluate_rankings`] returns.
        intervals (`dict[str, tuple[float, float]]`, *optional*): 95 % bootstrap intervals of the means over users.
        per_user (`dict[str, np.ndarray]`, *optional*): The values `(num_users,)` behind those, for
            [`paired_comparison`].
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    per_user: dict[str, np.ndarray] = field(default_factory=dict, repr=False)


def evaluate_split(
    ranked: np.ndarray,
    dataset: RecDataset,
    *,
    split: str = "test",
    ks: Sequence[int] = (1, 5, 10),
    rewards: Mapping[str, float] | None = None,
    reward_functions: Mapping[str, ListReward] | None = None,
    seed: int = 0,
) -> Evaluation:
    """All metrics of a ranking of a split's rows, with intervals.

    Args:
        ranked (`np.ndarray` of shape `(len(split), K)`): Item indices a row of the split, best first, -1 for a missing
            rank.
        dataset (`RecDataset`): Gives the split, the catalogue, and the training popularity.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` or `"test"`.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): Lengths to cut the lists at.
        rewards (`Mapping[str, float]`, *optional*): Weights of rewards, as in [`score_lists`]; adds the metric
            `reward`, their weighted sum over the lists as they are given, and each part as `reward/ndcg` and the like.
        reward_functions (`Mapping[str, ListReward]`, *optional*): Rewards besides the named ones.
        seed (`int`, *optional*, defaults to `0`): Of the bootstrap.
    """
    rows = held_out(dataset, split)
    relevant = split_rows(rows, "targets")
    popularity = TrainingLog.read(dataset.train, len(dataset.catalog)).popularity
    metrics = evaluate_rankings(
        ranked, relevant, ks=ks, catalog=dataset.catalog, histories=split_rows(rows, "history"), popularity=popularity
    )
    per_user = per_user_metrics(ranked, relevant, ks=ks)
    if rewards is not None:
        scored = score_split(ranked[:, None], rows, dataset.catalog, rewards, reward_functions)
        values = {"reward": scored.total, **{f"reward/{name}": part for name, part in scored.parts.items()}}
        per_user |= {name: value[:, 0] for name, value in values.items()}
        metrics |= {name: float(value.mean()) for name, value in values.items()}
    return Evaluation(
        metrics, {name: bootstrap_interval(values, seed=seed) for name, values in per_user.items()}, per_user
    )


def evaluate_baselines(
    dataset: RecDataset,
    *,
    split: str = "test",
    ks: Sequence[int] = (1, 5, 10),
    exclude_history: bool = True,
    rewards: Mapping[str, float] | None = None,
    reward_functions: Mapping[str, ListReward] | None = None,
    seed: int = 0,
) -> dict[str, Evaluation]:
    """The baselines `random`, `popularity` and `transition`, learned from `dataset.train` and evaluated on a split.

    Args:
        dataset (`RecDataset`): The dataset.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` or `"test"`.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): Lengths to cut the lists at.
        exclude_history (`bool`, *optional*, defaults to `True`): Whether items of a user's history are never
            recommended.
        rewards, reward_functions (*optional*): As in [`evaluate_split`].
        seed (`int`, *optional*, defaults to `0`): Of the random baseline and of the bootstrap.
    """
    histories = split_rows(held_out(dataset, split), "history")
    rewarded: dict[str, Any] = {"rewards": rewards, "reward_functions": reward_functions}
    baselines: dict[str, RandomBaseline | PopularityBaseline | TransitionBaseline] = {
        "random": RandomBaseline(seed),
        "popularity": PopularityBaseline(),
        "transition": TransitionBaseline(),
    }
    results = {}
    for name, baseline in baselines.items():
        ranked = baseline.fit(dataset.train, len(dataset.catalog)).rank(histories, max(ks), exclude_history)
        results[name] = evaluate_split(ranked, dataset, split=split, ks=ks, seed=seed, **rewarded)
    return results


def held_out(dataset: RecDataset, split: str) -> Dataset:
    """The split of that name, `"validation"` or `"test"`."""
    splits = {"validation": dataset.validation, "test": dataset.test}
    if split not in splits:
        raise ValueError(f"cannot evaluate on split {split!r}; choose validation or test")
    if len(splits[split]) == 0:
        raise ValueError(f"the {split} split has no rows; prepare the data with more interactions a user")
    return splits[split]
