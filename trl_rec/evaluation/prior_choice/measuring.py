"""Measures settings of a prior by NDCG on the validation split. A setting is a strength and an eps (the weight of
popularity).

Running the model again for every setting would take long. If the model scores single items, its scores are therefore
used for many settings. If it writes lists, it has to write them again with every setting.
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
from trl_rec.decoding.trie_weights import log_weights
from trl_rec.evaluation.evaluator import per_user_metrics
from trl_rec.evaluation.policy import Policy, RankingPass
from trl_rec.evaluation.prior_choice.grid import EPS_STEPS, STRENGTH_STEPS, Setting, with_setting
from trl_rec.evaluation.prior_choice.ndcg import ndcg_by_setting
from trl_rec.evaluation.rank import map_rows
from trl_rec.evaluation.results import held_out
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset

# Maximum number of validation users for each way to measure settings (see `make_measure`).
MOST_USERS = {"exact": 10_000, "rescored": 2_000, "lists": 300}
NUM_RESCORED = 50  # how many items to re-rank from the policy's ranking, and how many from the prior's ranking
Measure: TypeAlias = Callable[[Sequence[Setting]], list[float]]  # returns the metric of each setting


def make_measure(
    policy: Policy, dataset: RecDataset, prior: FittedPrior, *, k: int, max_users: int | None = None
) -> tuple[Measure, str, int]:
    """Makes the function that measures settings by NDCG@k on the validation split.

    There are three ways to measure settings:

    - `"exact"`: If every item is a single token, all items are scored, so the NDCG is exact. The scores need too
      much memory to be kept, so each call of the function computes them again. All settings of a call share them.
    - `"rescored"`: If items have several tokens, only the best items of the policy alone and the best items of the
      prior alone, `NUM_RESCORED` each, are ranked for a user. Their exact scores are computed once, and the items are
      re-ranked with each setting.
    - `"lists"`: If the model writes lists, the lists are written again for each setting.

    Args:
        policy (`Policy`): The policy, whose own prior is ignored.
        dataset (`RecDataset`): The dataset. Only its validation split is read.
        prior ([`FittedPrior`]): The prior. Its strength is ignored. Its eps is used only to find the best items of the
            prior alone.
        k (`int`): The cutoff of the metric.
        max_users (`int`, *optional*): Maximum number of validation users. The number in `MOST_USERS` is a further
            maximum.

    Returns:
        The function, the name of the way in which it measures, and the number of validation users.
    """
    # The trie is used together with scores, which are on the device of the model.
    policy = replace(policy, prior=None, trie=policy.trie.to(policy.model.device))
    how, rows = _way_and_rows(policy, dataset, max_users)
    make = {"lists": _by_writing, "exact": _by_scoring, "rescored": _by_rescoring}[how]
    return make(policy, rows, prior, k), how, len(rows)


def seconds_to_measure(policy: Policy, dataset: RecDataset, *, k: int, max_users: int | None = None) -> float:
    """Estimates how many seconds it takes to measure all settings, by ranking items for a few validation users.

    All processes must call this function. The arguments are those of [`make_measure`].
    """
    how, rows = _way_and_rows(policy, dataset, max_users)
    if how == "rescored":
        # One pass finds the `most` best items of the policy, and another scores the `most` best items of the prior.
        # To time the second pass, score `most` items that are spread evenly over the catalogue instead.
        most = min(NUM_RESCORED, len(policy.trie.item_positions))
        num_beams = max(policy.num_beams or 0, most)

        def _rank(policy: Policy, some: Dataset) -> object:
            return policy.rank(some, most, num_beams=num_beams)

        def _score(policy: Policy, some: Dataset) -> object:
            spread = np.linspace(0, len(policy.trie.item_positions) - 1, most).astype(np.int64)
            known = spread[policy.trie.item_positions.cpu().numpy()[spread] >= 0]
            return policy.score(some, Ragged.repeated(known, len(some)))

        return len(rows) * sum(policy.seconds_of([_rank, _score], rows))

    # The search measures a first grid of settings and, usually, an extension of this grid. If the model writes lists,
    # each setting needs a pass, and only the strength or only eps changes at a time. So count the strengths plus the
    # values of eps in the first grid, as if every prior had an eps. With exact scores, one pass serves all settings of
    # a grid. So count one pass for the first grid, and one pass for the extension.
    number = len(STRENGTH_STEPS) + len(EPS_STEPS) if how == "lists" else 2
    return number * len(rows) * policy.seconds_per_user(rows, [RankingPass(k)])[0]


def num_measured(policy: Policy, dataset: RecDataset, max_users: int | None) -> int:
    """Returns the number of validation users for whom settings are measured."""
    return len(_way_and_rows(policy, dataset, max_users)[1])


def _way_and_rows(policy: Policy, dataset: RecDataset, max_users: int | None) -> tuple[str, Dataset]:
    """Returns the name of the way in which settings are measured, and the validation users."""
    how = "lists" if policy.writes_lists else "exact" if policy.trie.max_depth == 1 else "rescored"
    most = MOST_USERS[how]
    return how, at_most(min(most, max_users or most), held_out(dataset, "validation"))


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

        kind = np.dtype(np.float64)
        finished = None if policy.finished is None else policy.finished.of(trie, prior, tuple(settings), k)
        values = policy.map_rows(_measure_batch, rows, len(settings), kind, "choosing the prior", finished=finished)
        return list(values.mean(0).tolist())

    return _measure


def _by_rescoring(policy: Policy, rows: Dataset, prior: FittedPrior, k: int) -> Measure:
    """Returns a function that measures settings by re-ranking the best items of the policy and of the prior."""
    # 1. Find the items to re-rank for each user, and their scores under the policy.
    most = min(NUM_RESCORED, len(policy.trie.item_positions))
    own = policy.rank(rows, most, num_beams=max(policy.num_beams or 0, most))
    by_prior = replace(policy, prior=with_setting(prior, Setting(1.0, None))).rank_by_prior(rows, most).items
    by_prior = np.where((by_prior[:, :, None] == own.items[:, None, :]).any(-1), -1, by_prior)  # each item once
    is_item = by_prior >= 0
    lengths = is_item.sum(1)
    scores_by_prior = np.full(by_prior.shape, -np.inf, np.float32)
    if lengths.any():
        has_any = np.flatnonzero(lengths)
        given = Ragged.from_lengths(by_prior[is_item].astype(np.int64), lengths).take(has_any)
        scores_by_prior[is_item] = policy.score(rows.select(has_any), given)
    assert own.scores is not None
    items = torch.from_numpy(np.concatenate([own.items, by_prior], 1))  # (N, P), padded with -1
    scores = torch.from_numpy(np.concatenate([own.scores, scores_by_prior], 1))

    # 2. Re-rank these items with each setting.
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
    """Returns, for each eps in the settings, `log(w / W)` of each of the items `(B, P)`.

    Here, w is the weight of the item, and W the sum of the weights of all items.
    """
    # One call of the prior is enough. Settings differ only in eps, which multiplies the weights that all histories
    # share, and in the strength, which is applied later.
    has_eps = not isinstance(prior, PopularityPrior)
    weights = with_setting(prior, Setting(1.0, 1.0 if has_eps else None)).weights(histories)
    shared = cast(Tensor, weights.shared)
    return {
        eps: log_weights(policy.trie, weights if eps is None else replace(weights, shared=eps * shared), items)
        for eps in {setting.eps for setting in settings if setting.strength}
    }
