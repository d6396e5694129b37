"""Estimates the smallest difference that a study can detect, and the headroom of each of its arms (recommenders).

The headroom of an arm is an upper bound on its gain over the arm that the other arms are compared with. The smallest
difference and the headrooms are computed before the first training, from the validation split and the results of the
baselines on it. If the study's recipe sets the headroom of an arm, this value is used instead. A headroom can be
computed only for arms whose models read item ids (one token per item) and no item texts. Such models cannot learn to
recommend an item that is not in the training split, which limits their measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trl_rec.data.dataset import RecDataset, at_most, split_rows
from trl_rec.data.list_rows import new_targets
from trl_rec.evaluation import evaluate_baselines, evaluate_rated_baselines
from trl_rec.evaluation.comparison.resolution import smallest_difference
from trl_rec.evaluation.results import held_out
from trl_rec.schedule.studies.arms import Arm, default_surface
from trl_rec.trainer.alro.rows import held_out_rows


# Measures whose value cannot exceed the share of rows with a reachable target (see `_reachable`).
BOUNDED = ("ndcg", "recall", "hit", "mrr")
KS = (1, 5, 10)
# Options of `trl-rec evaluate` that also apply to the baselines. `split` is not among them, because the baselines are
# always measured on the validation split here.
OF_BASELINES = ("ks", "exclude_history", "rewards", "seed")
# Verbs that can train a model on item ids alone. `alro` is missing because its models order given candidates, which
# may be items outside the training split. `softmax_dpo` is missing because its preferences may contain such items.
OF_IDS = ("bear", "blade", "align3gr")


@dataclass(frozen=True)
class Resolution:
    """The smallest difference that a study can detect, and the values from which headrooms are computed.

    Args:
        smallest: The smallest difference in the primary measure that the study can detect; None if the baselines do
            not have this measure.
        ceiling: An upper bound on the primary measure, on the validation split, of a recommender that recommends only
            items of the training split; None if the measure is not in `BOUNDED`, or if the baselines do not have it.
        reference: The primary measure, on the validation split, of the arm that the other arms are compared with
            (the study's `against`); None if that arm is not one of the baselines measured here.
        only_ids: Names of the arms whose models read item ids and no item texts (see [`knows_only_ids`]).
        num_users: Number of users that `smallest` is estimated for. In a study of rated candidates, users without
            a list to order do not count.
    """

    smallest: float | None
    ceiling: float | None
    reference: float | None
    only_ids: frozenset[str] = frozenset()
    num_users: int = 0

    def headroom(self, arm: Arm) -> float | None:
        """Returns an upper bound on the gain of an arm over the reference, or None if no bound is known."""
        if arm.headroom is not None:
            return arm.headroom
        if self.ceiling is None or self.reference is None or arm.name not in self.only_ids:
            return None
        return self.ceiling - self.reference

    def is_decidable(self, arm: Arm) -> bool:
        """Returns False if the headroom of the arm is known to be below the smallest difference, else True."""
        headroom = self.headroom(arm)
        return headroom is None or self.smallest is None or headroom >= self.smallest


def resolution(
    dataset: RecDataset,
    arms: Mapping[str, Arm],
    against: str,
    primary: str,
    *,
    num_candidates: int,
    evaluation: Mapping[str, Any],
    split: str = "test",
    max_users: int | None = None,
) -> Resolution:
    """Measures the baselines on the validation split, and estimates from them what the study can detect.

    Args:
        dataset: The dataset.
        arms: The arms by name.
        against: Name of the arm that the other arms are compared with.
        primary: The primary measure.
        num_candidates: Number of rated candidates per list. Used only if `primary` is a measure of rated lists.
        evaluation: The options of `trl-rec evaluate` that the study sets. Only those in `OF_BASELINES` are used.
        split (*optional*): The split on which the study will measure the arms. Only its number of users is used.
        max_users (*optional*): Maximum number of users on which the study will measure the arms.
    """
    is_rated = primary == "tau" or primary.startswith("graded_")
    options = {name: value for name, value in evaluation.items() if name in OF_BASELINES}
    measured = at_most(max_users, held_out(dataset, split))
    if is_rated:
        rows = held_out_rows(dataset.validation, num_candidates=num_candidates)
        baselines = evaluate_rated_baselines(dataset.train, rows, len(dataset.catalog), ks=options.get("ks", KS))
        pilot, num_users = ("item mean", "popularity"), len(held_out_rows(measured, num_candidates=num_candidates))
    else:
        surfaced = dataset.with_surface("item_token")
        baselines = evaluate_baselines(surfaced, split="validation", **options)
        pilot, num_users = ("transition", "popularity"), len(measured)
    if any(primary not in one.per_user for one in baselines.values()):
        return Resolution(None, None, None)

    # The pilot compares two baselines. The difference between them is assumed to vary over the users as much as the
    # difference between a trained model and a baseline. Baselines have no seeds, so the estimate does not include the
    # variation between seeds. The estimate depends neither on the number of seeds nor on the number of comparisons.
    smallest = smallest_difference(
        [baselines[pilot[0]].per_user],
        [baselines[pilot[1]].per_user],
        metric=primary,
        num_users=num_users,
    )
    baseline = arms[against].baseline
    reference = None if baseline not in baselines else baselines[baseline].metrics[primary]
    ceiling = None
    if primary.split("@")[0] in BOUNDED:
        ceiling = _reachable(dataset, bool(options.get("exclude_history", True)))
    only_ids = frozenset(name for name, arm in arms.items() if knows_only_ids(arm, arms))
    return Resolution(smallest, ceiling, reference, only_ids, num_users)


def knows_only_ids(arm: Arm, arms: Mapping[str, Arm]) -> bool:
    """Returns whether the models of an arm read item ids and no item texts.

    This must hold at every point (combination of settings) of the arm's grid. A model that reads only item ids cannot
    learn to recommend an item outside the training split. The result is False if a model may have read texts of the
    items, or may have been trained on other data.

    Args:
        arm: The arm.
        arms: All arms by name. Needed because a training may start from the model of another arm, and this model may
            have read texts.
    """
    if arm.verb not in OF_IDS:
        return False
    if arm.start is not None and not knows_only_ids(arms[arm.start], arms):
        return False
    return all(_reads_only_ids(arm.verb, {**arm.recipe, **point}) for point in arm.grid)


def _reads_only_ids(verb: str, keys: Mapping[str, Any]) -> bool:
    """Returns whether a training with these recipe keys uses one token per item and reads no texts of the items.

    Even with one token per item, a model may read texts in three ways: through `tasks` (set directly or in the section
    `supervised`), through `item_vectors`, or because the model in `model_name_or_path` was trained on texts.
    """
    return (
        keys.get("surface", default_surface(verb)) == "item_token"
        and keys.get("item_vectors", "random") in ("random", "behaviour")
        and all(keys.get(name) is None for name in ("model_name_or_path", "tasks", "supervised"))
    )


def _reachable(dataset: RecDataset, exclude_history: bool) -> float:
    """Returns the share of validation rows with a target that is in the training split and may be recommended.

    If `exclude_history` is True, a target in the history of its row may not be recommended.
    """
    known = np.zeros(len(dataset.catalog), bool)
    for column in ("history", "targets"):
        known[np.asarray(split_rows(dataset.train, column).values, int)] = True

    targets = split_rows(dataset.validation, "targets")
    is_reachable = known[targets.values]  # one boolean per target
    if exclude_history:
        is_reachable &= new_targets(split_rows(dataset.validation, "history"), targets)
    return len(np.unique(targets.row_ids[is_reachable])) / max(1, len(dataset.validation))
