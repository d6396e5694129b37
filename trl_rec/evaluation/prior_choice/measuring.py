"""Measures settings of a prior on the validation split.

Decoding the validation users once per setting would take long. Only models that write lists have to do this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.dataset import at_most, split_rows
from trl_rec.decoding.exact import score_catalog
from trl_rec.decoding.priors import FittedPrior, PopularityPrior
from trl_rec.evaluation.evaluator import per_user_metrics
from trl_rec.evaluation.policy import Policy, log_weights
from trl_rec.evaluation.prior_choice.grid import Setting, with_setting
from trl_rec.evaluation.prior_choice.ndcg import ndcg_by_setting
from trl_rec.evaluation.rank import map_rows
from trl_rec.evaluation.results import held_out
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset

# Maximum number of validation users, by how settings are measured.
MOST_USERS = {"exact": 10_000, "candidates": 2_000, "lists": 300}
CANDIDATES = 50  # best items of the policy, and best items of the prior, that are re-ranked
Measure: TypeAlias = Callable[[Sequence[Setting]], list[float]]  # returns the metric of each setting


def make_measure(
    policy: Policy, dataset: RecDataset, prior: FittedPrior, *, k: int, max_users: int | None = None
) -> tuple[Measure, str, int]:
    """Makes the function that measures settings by NDCG@k on the validation split.

    There are three ways to measure settings:

    - `"exact"`: If every item is a single token, all items are scored, so each value is exact. The scores are too
      large to keep, so each call of the function computes them again, once for all settings of the call.
    - `"candidates"`: If the paths of items are longer, the candidates of a user are the best items of the policy alone
      and the best items of the prior alone, `CANDIDATES` each. Their exact scores are computed once. Each setting
      re-ranks them.
    - `"lists"`: A model that writes lists writes them again for each setting.

    Args:
        policy (`Policy`): The policy, whose own prior is ignored.
        dataset (`RecDataset`): The dataset. Only its validation split is read.
        prior ([`FittedPrior`]): The prior. Its strength is ignored. Its eps is only used to find candidates.
        k (`int`): The cutoff of the metric.
        max_users (`int`, *optional*): Maximum number of validation users, besides that in `MOST_USERS`.

    Returns:
        The function, the name of the way in which it measures, and the number of validation users.
    """
    policy = replace(policy, prior=None, trie=policy.trie.to(policy.model.device))  # the scores are on this device
    how = "lists" if policy.writes_lists else "exact" if policy.trie.max_depth == 1 else "candidates"
    rows = at_most(min(MOST_USERS[how], max_users or MOST_USERS[how]), held_out(dataset, "validation"))
    make = {"lists": _by_writing, "exact": _by_scoring, "candidates": _by_candidates}[how]
    return make(policy, rows, prior, k), how, len(rows)


def _by_scoring(policy: Policy, rows: Dataset, prior: FittedPrior, k: int) -> Measure:
    """Returns a function that measures settings with the exact scores of all items."""
    trie = policy.trie
    histories = split_rows(rows, "history")
    targets = torch.from_numpy(split_rows(rows, "targets").padded())  # (N, T)
    items = torch.arange(len(trie.item_positions), device=trie.items.device)

    def _measure(settings: Sequence[Setting]) -> list[float]:
        def _measure_batch(prompts: dict[str, Tensor], numbers: np.ndarray, exclude: Tensor | None) -> np.ndarray:
            scores = score_catalog(
                policy.model, prompts, trie, renormalize=policy.renormalize, length_penalty=policy.length_penalty
            )
            if exclude is not None:
                padded = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)
                columns = torch.where(exclude < 0, len(items), exclude).to(scores.device)
                scores = padded.scatter(1, columns, -torch.inf)[:, :-1]
            some = items.expand(len(scores), -1)
            weights = _log_weights(policy, prior, histories.take(numbers), some, settings)
            return ndcg_by_setting(scores, some, targets[numbers].to(scores.device), settings, weights, k)

        values = policy.map_rows(_measure_batch, rows, len(settings), np.dtype(np.float64), "choosing the prior")
        return list(values.mean(0).tolist())

    return _measure


def _by_candidates(policy: Policy, rows: Dataset, prior: FittedPrior, k: int) -> Measure:
    """Returns a function that measures settings by re-ranking the best items of the policy and of the prior."""
    # 1. Find the candidates of each user, and their scores under the policy.
    most = min(CANDIDATES, len(policy.trie.item_positions))
    own = policy.rank(rows, most, num_beams=max(policy.num_beams or 0, most))
    likely = replace(policy, prior=with_setting(prior, Setting(1.0, None))).rank_by_prior(rows, most).items
    likely = np.where((likely[:, :, None] == own.items[:, None, :]).any(-1), -1, likely)  # each item once
    lengths = (likely >= 0).sum(1)
    further = np.full(likely.shape, -np.inf, np.float32)
    if lengths.any():
        has_any = np.flatnonzero(lengths)
        given = Ragged.from_lengths(likely[likely >= 0].astype(np.int64), lengths).take(has_any)
        further[likely >= 0] = policy.score(rows.select(has_any), given)
    assert own.scores is not None
    items = torch.from_numpy(np.concatenate([own.items, likely], 1))  # (N, P)
    scores = torch.from_numpy(np.concatenate([own.scores, further], 1))

    # 2. Re-rank them.
    histories = split_rows(rows, "history")
    targets = torch.from_numpy(split_rows(rows, "targets").padded())

    def _measure(settings: Sequence[Setting]) -> list[float]:
        def _measure_batch(numbers: np.ndarray) -> np.ndarray:
            device = policy.trie.items.device
            some = items[numbers].to(device)
            weights = _log_weights(policy, prior, histories.take(numbers), some, settings)
            return ndcg_by_setting(scores[numbers].to(device), some, targets[numbers].to(device), settings, weights, k)

        values = map_rows(
            _measure_batch,
            histories.lengths,
            width=len(settings),
            dtype=np.dtype(np.float64),
            desc="choosing the prior",
            batch_size=policy.batch_size,
        )
        return list(values.mean(0).tolist())

    return _measure


def _by_writing(policy: Policy, rows: Dataset, prior: FittedPrior, k: int) -> Measure:
    """Returns a function that measures settings by writing lists with each of them."""
    targets = split_rows(rows, "targets")

    def _measure(settings: Sequence[Setting]) -> list[float]:
        values = []
        for setting in settings:
            own = None if setting.strength == 0 else with_setting(prior, setting)
            ranked = replace(policy, prior=own).rank(rows, k)
            values.append(float(per_user_metrics(ranked.items, targets, ks=[k])[f"ndcg@{k}"].mean()))
        return values

    return _measure


def _log_weights(
    policy: Policy, prior: FittedPrior, histories: Ragged, items: Tensor, settings: Sequence[Setting]
) -> dict[float | None, Tensor]:
    """Returns, for each eps in the settings, `log(w / W)` of each of the items `(B, P)`."""
    # Call the prior once for all settings, because eps is only a factor of the weights that all histories share.
    has_eps = not isinstance(prior, PopularityPrior)
    weights = with_setting(prior, Setting(1.0, 1.0 if has_eps else None)).weights(histories)
    shared = cast(Tensor, weights.shared)
    return {
        eps: log_weights(policy.trie, weights if eps is None else replace(weights, shared=eps * shared), items)
        for eps in {setting.eps for setting in settings if setting.strength}
    }
