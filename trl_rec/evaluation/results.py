"""Evaluates a ranking on a split of a dataset with all metrics, and evaluates the baselines in the same way."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.data.list_rows import new_targets
from trl_rec.data.train_interactions import TrainInteractions
from trl_rec.evaluation.baselines import FittedBaseline, PopularityBaseline, RandomBaseline, TransitionBaseline
from trl_rec.evaluation.evaluator import evaluate_rankings, per_user_metrics
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.preferences import RatedTargets
from trl_rec.evaluation.rankings import Rankings
from trl_rec.evaluation.rewards import ListReward, score_split


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset
    from trl_rec.evaluation.beam_gap import BeamGap
    from trl_rec.items.twins import Twins
    from trl_rec.ragged import Ragged

logger = logging.getLogger(__name__)
# Names of the baselines in results. Those in `BASELINES` are evaluated by default; `SEQUENCE` has to be trained first.
BASELINES = ("random", "popularity", "transition")
SEQUENCE = "sequence"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics of one recommender on one split.

    Args:
        metrics (`dict[str, float]`): The metrics by name, such as those of [`evaluate_rankings`], and rewards if any
            were requested.
        intervals (`dict[str, tuple[float, float]]`, *optional*): 95 % bootstrap intervals of the means over users.
        per_user (`dict[str, np.ndarray]`, *optional*): The values per user, `(num_users,)` each, from which the
            intervals are computed. They can be passed to [`paired_comparison`]. A value is NaN if the metric does not
            apply to the user: `liked@10`, for example, is NaN for a user who liked no held-out item.
        rankings (`Rankings`, *optional*): The ranked items that were evaluated.
        beam_gap (`BeamGap`, *optional*): What the model loses because its beam search prunes items, if measured.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    per_user: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    rankings: Rankings | None = field(default=None, repr=False)
    beam_gap: BeamGap | None = field(default=None, repr=False)

    def with_values(self, values: Mapping[str, np.ndarray], *, seed: int = 0) -> Evaluation:
        """Returns the evaluation with further metrics.

        Args:
            values (`Mapping[str, np.ndarray]`): The values per user of each metric, `(num_users,)`. Users with NaN are
                left out of the mean and of the interval. A metric that applies to no user is left out.
            seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.
        """
        per_user = {name: value for name, value in values.items() if not np.isnan(value).all()}
        known = {name: value[~np.isnan(value)] for name, value in per_user.items()}
        return replace(
            self,
            metrics=self.metrics | {name: float(value.mean()) for name, value in known.items()},
            intervals=self.intervals | {name: bootstrap_interval(value, seed=seed) for name, value in known.items()},
            per_user=self.per_user | per_user,
        )


def evaluate_split(
    ranked: Rankings | np.ndarray,
    dataset: RecDataset,
    *,
    split: str = "test",
    ks: Sequence[int] = (1, 5, 10),
    rewards: Mapping[str, float] | None = None,
    reward_functions: Mapping[str, ListReward] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluates a ranking for the rows of a split, with bootstrap intervals of the metrics that are means over users.

    Args:
        ranked (`Rankings`, or `np.ndarray` of shape `(len(split), K)`): The items for each row of the split, best
            first, padded with -1.
        dataset (`RecDataset`): Contains the split, the catalogue, and the training split, from which the popularity of
            items is counted.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` or `"test"`.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): The cutoffs k of the metrics.
        rewards (`Mapping[str, float]`, *optional*): Weights of rewards, as in [`score_lists`]. If given, the metrics
            also include the weighted sum as `reward`, and each reward by name, such as `reward/ndcg`. Rewards are
            computed from all K ranks.
        reward_functions (`Mapping[str, ListReward]`, *optional*): Additional reward functions by name.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.
    """
    rankings = ranked if isinstance(ranked, Rankings) else Rankings(np.asarray(ranked))
    items = rankings.items
    rows = held_out(dataset, split)
    relevant = split_rows(rows, "targets")
    histories = split_rows(rows, "history")
    popularity = TrainInteractions.from_split(dataset.train, len(dataset.catalog)).popularity

    metrics = evaluate_rankings(
        items, relevant, ks=ks, catalog=dataset.catalog, histories=histories, popularity=popularity
    )
    per_user = per_user_metrics(items, relevant, ks=ks)  # (num_users,) each

    if rewards is not None:
        # `score_split` expects several lists per user; here there is one.
        scored = score_split(items[:, None], rows, dataset.catalog, rewards, reward_functions)
        values = {"reward": scored.total, **{f"reward/{name}": part for name, part in scored.parts.items()}}
        per_user |= {name: value[:, 0] for name, value in values.items()}

    rated = RatedTargets.from_split(rows)
    if rated is not None:
        per_user |= rated.found(items, ks)
        metrics |= rated.num_users
    return Evaluation(metrics, rankings=rankings).with_values(per_user, seed=seed)


def evaluate_baselines(
    dataset: RecDataset,
    *,
    split: str = "test",
    ks: Sequence[int] = (1, 5, 10),
    recall_at: int | None = None,
    exclude_history: bool = True,
    rewards: Mapping[str, float] | None = None,
    reward_functions: Mapping[str, ListReward] | None = None,
    seed: int = 0,
    baselines: Sequence[str] = BASELINES,
    sequence: FittedBaseline | None = None,
) -> dict[str, Evaluation]:
    """Evaluates baselines on a split. `random`, `popularity` and `transition` are fitted on `dataset.train` first.

    Args:
        dataset (`RecDataset`): The dataset.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` or `"test"`.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): The cutoffs k of the metrics.
        recall_at (`int`, *optional*): A further cutoff above `ks`, for recall alone, as in [`evaluate_policy`].
        exclude_history (`bool`, *optional*, defaults to `True`): Whether to exclude the items of a user's history. If
            the catalogue's surface is the title, all items with the title of a history item are excluded, as they are
            for models.
        rewards, reward_functions (*optional*): As in [`evaluate_split`].
        seed (`int`, *optional*, defaults to `0`): Seed of the random baseline and of the bootstrap.
        baselines (`Sequence[str]`, *optional*): Names of the baselines to evaluate, in the order of the results.
            Defaults to `BASELINES`. The names may also include `"sequence"`.
        sequence (*optional*): The trained baseline `"sequence"`, a [`SequenceBaseline`]. Required if `baselines`
            contains `"sequence"`.

    Returns:
        `dict[str, Evaluation]`: the evaluation of each baseline by name.
    """
    check_baselines(baselines)
    if SEQUENCE in baselines and sequence is None:
        raise ValueError(
            "the baseline 'sequence' has to be trained; pass sequence=SequenceBaseline().fit(dataset), or remove "
            "'sequence' from `baselines`"
        )
    rows = held_out(dataset, split)
    histories = split_rows(rows, "history")
    if exclude_history:
        _warn_of_known_targets(histories, split_rows(rows, "targets"), dataset.catalog.twins)
    rated = RatedTargets.from_split(rows)
    further = further_cutoff(recall_at, ks, len(dataset.catalog))

    results = {}
    for name in baselines:
        baseline = _fit(name, dataset, seed) if name != SEQUENCE or sequence is None else sequence
        ranked = baseline.rank(histories, further or max(ks), exclude_history, dataset.catalog.twins)
        evaluation = evaluate_split(
            ranked.head(max(ks)),
            dataset,
            split=split,
            ks=ks,
            rewards=rewards,
            reward_functions=reward_functions,
            seed=seed,
        )

        # Add recall at the further cutoff, and `preference_accuracy`, which is computed from scores instead of ranks.
        values = recall_far_down(ranked, rows, further)
        if rated is not None:
            values["preference_accuracy"] = rated.accuracy(baseline.score(histories, rated.items))
        results[name] = evaluation.with_values(values, seed=seed)
    return results


def check_baselines(names: Sequence[str]) -> None:
    """Raises `ValueError` if names of baselines are unknown or repeated, or if there are none."""
    known = (*BASELINES, SEQUENCE)
    if not names:
        raise ValueError(f"baselines is empty; name at least one of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(f"there is no baseline {name!r}; choose among {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"baselines contains a baseline twice ({', '.join(names)}); name each baseline once")


def _fit(name: str, dataset: RecDataset, seed: int) -> FittedBaseline:
    """Fits a baseline of `BASELINES` on the training split."""
    baselines: dict[str, RandomBaseline | PopularityBaseline | TransitionBaseline] = {
        "random": RandomBaseline(seed),
        "popularity": PopularityBaseline(),
        "transition": TransitionBaseline(),
    }
    return baselines[name].fit(dataset.train, len(dataset.catalog))


def _warn_of_known_targets(histories: Ragged, targets: Ragged, twins: Twins | None) -> None:
    """Warns if at least a tenth of the targets cannot be found because they are in the histories of their rows.

    Two other kinds of targets are counted too: those with a twin in the history, and those that repeat an earlier
    target of the row.
    """
    is_new = new_targets(histories, targets, twins)
    if is_new.mean() <= 0.9:
        logger.warning(
            "%d of %d targets are in their user's history, so no recommender can find them when histories are "
            "excluded, and all metrics are low; prepare the data with 'repeats: first' or 'repeats: last', or do not "
            "exclude histories",
            (~is_new).sum(),
            len(is_new),
        )


def further_cutoff(recall_at: int | None, ks: Sequence[int], num_items: int) -> int | None:
    """Returns `recall_at`, or None if recall at this cutoff is not needed.

    It is not needed if `recall_at` is None or 0, if `recall_at` is at most the largest of `ks`, or if a list of this
    length contains the whole catalogue.
    """
    if not recall_at or recall_at <= max(ks) or recall_at >= num_items:
        return None
    return recall_at


def recall_far_down(ranked: Rankings, rows: Dataset, k: int | None) -> dict[str, np.ndarray]:
    """Returns a mapping from `recall@k` to its values per user, `(num_users,)`. The mapping is empty if k is None."""
    if k is None:
        return {}
    name = f"recall@{k}"
    return {name: per_user_metrics(ranked.items, split_rows(rows, "targets"), ks=[k])[name]}


def held_out(dataset: RecDataset, split: str) -> Dataset:
    """Returns the validation or test split by name. Raises `ValueError` for any other name and for an empty split."""
    splits = {"validation": dataset.validation, "test": dataset.test}
    if split not in splits:
        raise ValueError(f"cannot evaluate on split {split!r}; choose validation or test")
    if len(splits[split]) == 0:
        raise ValueError(f"the {split} split has no rows; prepare the data with more interactions per user")
    return splits[split]
