"""Fits the weights of a [`MixturePrior`] to the targets of the validation split.

The weights maximise the likelihood of the targets. They are found by expectation maximisation, which converges to the
best weights because the log-likelihood is concave in the weights. With a dozen weights and thousands of targets, the
fit does not depend much on single users.

Legend: N targets, M components of the mixture (one per table of transition counts, and then one for the popularity).
The share of an item is the probability that a component gives to this item after a history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from trl_rec.data.dataset import at_most, split_rows
from trl_rec.data.transitions import TransitionCounts
from trl_rec.decoding.priors.counted import popularity_shares
from trl_rec.decoding.priors.mixture_counts import partial_shares
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from datasets import Dataset

MOST_TARGETS = 10_000  # approximate maximum number of validation targets that the weights are fitted to
BATCH = 256  # number of targets whose shares are looked up together
NUM_STEPS = 1000  # maximum number of steps of the fit
TOLERANCE = 1e-9  # the fit ends when a step changes the mean log-likelihood by less than this


def fitting_rows(validation: Dataset, *, exclude_history: bool = True) -> Dataset:
    """Returns the validation rows that the mixture weights are fitted to, with at most about `MOST_TARGETS` targets.

    Raises `ValueError` if these rows have no target or, with `exclude_history`, no target outside of its history.
    """
    # 1. Select rows that are spread evenly over the split.
    num_targets = max(len(split_rows(validation, "targets").values), 1)
    rows = at_most(max(1, MOST_TARGETS * len(validation) // num_targets), validation)

    # 2. Check that there is a target to fit.
    targets = split_rows(rows, "targets")
    remains = np.ones(len(targets.values), bool)
    if exclude_history:
        histories = split_rows(rows, "history")
        width = int(max(histories.values.max(initial=0), targets.values.max(initial=0))) + 1
        known = histories.row_ids * width + histories.values
        remains = ~np.isin(targets.row_ids * width + targets.values, known)
    if not remains.any():
        raise ValueError(
            "a mixture cannot be fitted, because the validation split has no target outside of its history; choose "
            "another prior, such as 'transition'"
        )
    return rows


def target_shares(
    counts: Mapping[str, TransitionCounts],
    popularity: np.ndarray,
    histories: Ragged,
    targets: Ragged,
    exclude_history: bool = True,
) -> np.ndarray:
    """Returns the share that each component gives to each target after its history, `(N, M)`.

    There is one column per table of counts, and then one for the popularity. With `exclude_history`, targets that are
    in their own history are left out, and items of the history have no share.

    Args:
        counts: The tables of transition counts, by name.
        popularity (`np.ndarray` of shape `(num_items,)`): How often each item was chosen in the training split.
        histories, targets: The history and the targets of each row that [`fitting_rows`] returns.
        exclude_history (*optional*, defaults to `True`): Whether the shares of items of the history are 0.
    """
    # 1. Make one row per target.
    num_items = len(popularity)
    histories = histories.take(targets.row_ids)
    wanted = targets.values
    if exclude_history:
        keys = histories.row_ids * num_items + histories.values
        is_new = ~np.isin(np.arange(len(wanted)) * num_items + wanted, keys)
        histories = histories.take(np.flatnonzero(is_new))
        wanted = wanted[is_new]

    # 2. Look up the share of each target.
    shares = np.zeros((len(wanted), len(counts) + 1))
    for start in range(0, len(wanted), BATCH):
        block = np.arange(start, min(start + BATCH, len(wanted)))
        some = histories.take(block)
        for column, one in enumerate(counts.values()):
            rows, items, parts = partial_shares(one, some, num_items, exclude_history)
            is_target = items == wanted[block][rows]
            shares[block, column] = np.bincount(rows[is_target], parts[is_target], len(block))

    # 3. Compute the share by popularity among the items that are not excluded.
    of_items = popularity_shares(popularity)
    left = np.ones(len(wanted))
    if exclude_history:
        distinct = np.unique(histories.row_ids * num_items + histories.values)
        left -= np.bincount(distinct // num_items, of_items[distinct % num_items], len(wanted))
    shares[:, -1] = of_items[wanted] / left
    return shares


def fit_mixture(likelihoods: np.ndarray) -> np.ndarray:
    """Returns the mixture weights `(M,)` that maximise the mean of `log(likelihoods @ weights)`.

    Args:
        likelihoods (`np.ndarray` of shape `(N, M)`): The probability of each observation under each component.
            Each observation must have a positive probability under at least one component.
    """
    weights = np.full(likelihoods.shape[1], 1 / likelihoods.shape[1])
    before = -np.inf
    for _ in range(NUM_STEPS):
        parts = likelihoods * weights
        totals = parts.sum(1, keepdims=True)  # (N, 1)
        now = float(np.log(totals).mean()) if len(totals) else 0.0
        if now - before < TOLERANCE:
            break
        before = now
        weights = (parts / totals).mean(0)
    return weights
