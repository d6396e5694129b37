"""Measures the beam gap: what a policy loses because its beam search prunes items.

For some users, the catalogue is ranked twice: once by the beam search, and once by the exact scores of all items. The
beam gap is the metric of the exact ranking minus the metric of the beam search. It shows how much a better search
could gain with the same policy, and does not bound what another policy can reach. The gap may be negative, because the
items that the search loses may be bad recommendations in spite of their high scores.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import at_most, split_rows, spread
from trl_rec.evaluation import metrics
from trl_rec.evaluation.evaluator import per_user_metrics
from trl_rec.evaluation.intervals import PairedComparison, paired_comparison
from trl_rec.evaluation.policy import Policy
from trl_rec.evaluation.rankings import Rankings
from trl_rec.evaluation.results import Evaluation, held_out
from trl_rec.evaluation.tables import aligned
from trl_rec.files import write_json
from trl_rec.ranges import COUNT


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset


@dataclass(frozen=True, eq=False)
class BeamGap:
    """The metrics of the beam search and of the exact ranking, for the same users.

    Args:
        num_users (`int`): Number of users.
        num_beams (`int`): B, the number of beams.
        beam (`dict[str, float]`): `ndcg@k` and `recall@k` of the beam search.
        exhaustive (`dict[str, float]`): `ndcg@k` and `recall@k` of the exact ranking.
        gaps (`dict[str, PairedComparison]`): Exact ranking minus beam search, per metric, with a 95 % bootstrap
            interval over users.
        num_reachable (`int`): Number of targets that are among the B items with the highest exact scores.
        num_pruned (`int`): Number of these reachable targets that are missing from the B items of the beam search.
        beam_seconds (`float`): Time of the beam search.
        exhaustive_seconds (`float`): Time of the exact ranking.
        lost_share (`float`, *optional*): Share of the B items with the highest exact scores that are missing from the
            B items of the beam search, over all users. It counts all items, not only targets, so it is precise even
            with few users.
        per_user (`dict[str, np.ndarray]`, *optional*): Values per user, `(len(split),)` each. They are not part of
            `to_dict`. Here, the cutoff is that of the metrics, k, instead of B: a target is reachable if it is among
            the k items with the highest exact scores, and pruned if it is reachable but not among the first k items of
            the beam search. `pruned@k` is the number of a user's pruned targets, divided by the number of distinct
            targets of the user. `pruning_rate@k` is the number of a user's pruned targets, divided by the number of
            the user's reachable targets; it is NaN if no target is reachable. Both are NaN for users who were not
            ranked.
    """

    num_users: int
    num_beams: int
    beam: dict[str, float]
    exhaustive: dict[str, float]
    gaps: dict[str, PairedComparison]
    num_reachable: int
    num_pruned: int
    beam_seconds: float
    exhaustive_seconds: float
    lost_share: float | None = None  # files of earlier versions lack it
    per_user: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def pruning_rate(self) -> float | None:
        """PruningRate@B: the share of the reachable targets that the beam search loses. None if there are no reachable
        targets."""
        return self.num_pruned / self.num_reachable if self.num_reachable else None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> BeamGap:
        """Restores a beam gap from the values that `to_dict` returned."""
        values = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        return cls(**{**values, "gaps": {name: PairedComparison(**gap) for name, gap in content["gaps"].items()}})

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as plain values, for a JSON file, without `per_user`."""
        gaps = {name: gap._asdict() for name, gap in self.gaps.items()}
        values = asdict(replace(self, per_user={}))
        del values["per_user"]
        return {**values, "gaps": gaps, "pruning_rate": self.pruning_rate}


def measure_beam_gap(
    policy: Policy, dataset: RecDataset, *, num_users: int, split: str = "test", k: int = 10, seed: int = 0
) -> BeamGap:
    """Ranks the catalogue for some users both by beam search and by the exact scores of all items.

    The beam search uses the policy's number of beams, but at least `k`. The time grows with the size of the catalogue,
    because for each user, the model reads the inner nodes of the trie that contains the items' tokens.

    Args:
        policy (`Policy`): A policy that ranks single items.
        dataset (`RecDataset`): The dataset.
        num_users (`int`): Number of users, spread evenly over the split.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` or `"test"`.
        k (`int`, *optional*, defaults to `10`): The cutoff of the metrics.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.
    """
    beams = [max(policy.num_beams or 0, k)]
    (gap,) = measure_beam_gaps(policy, dataset, beams=beams, num_users=num_users, split=split, k=k, seed=seed)
    return gap


def measure_beam_gaps(
    policy: Policy,
    dataset: RecDataset,
    *,
    beams: Sequence[int],
    num_users: int,
    split: str = "test",
    k: int = 10,
    seed: int = 0,
) -> list[BeamGap]:
    """Same as [`measure_beam_gap`], for several numbers of beams. The exact scores are computed only once.

    With B beams, the cutoff of the metrics is the smaller of k and B. A beam search with few beams is therefore
    compared with exact rankings of the same length.

    Args:
        policy, dataset, num_users, split, k, seed: As in [`measure_beam_gap`].
        beams (`Sequence[int]`): The numbers of beams.
    """
    COUNT.check("num_users", num_users)
    for count in beams:
        COUNT.check("beams", count)
    if policy.writes_lists:
        raise ValueError("the model writes lists; the beam gap compares rankings of single items")
    # Do not reuse rankings of an interrupted evaluation, because the measured times would not include them.
    policy = replace(policy, finished=None)
    numbers = spread(num_users, len(held_out(dataset, split)))
    rows = at_most(num_users, held_out(dataset, split))

    started = time.perf_counter()
    exact = policy.rank_exhaustively(rows, max(beams))
    exhaustive_seconds = time.perf_counter() - started

    targets = split_rows(rows, "targets")
    pairs = np.unique(np.stack([targets.row_ids, targets.values], 1), axis=0)  # a row may repeat a target
    num_distinct = np.bincount(pairs[:, 0], minlength=len(rows))
    gaps = []
    for num_beams in beams:
        # 1. Rank by beam search. The first B ranks suffice for the metrics and for the pruned targets.
        started = time.perf_counter()
        beam = policy.rank(rows, num_beams, num_beams=num_beams)
        beam_seconds = time.perf_counter() - started

        # 2. Compare the two rankings.
        best = exact.head(num_beams)
        cutoff = min(k, num_beams)
        names = (f"ndcg@{cutoff}", f"recall@{cutoff}")
        by_beam, by_exact = (per_user_metrics(ranked.items, targets, ks=[cutoff]) for ranked in (beam, best))
        num_reachable, num_pruned = _pruned(beam, best, rows)  # (N,) each
        at_cutoff = _pruned(beam.head(cutoff), best.head(cutoff), rows)
        gaps.append(
            BeamGap(
                num_users=len(rows),
                num_beams=num_beams,
                beam={name: float(by_beam[name].mean()) for name in names},
                exhaustive={name: float(by_exact[name].mean()) for name in names},
                gaps={name: paired_comparison(by_exact[name], by_beam[name], seed=seed) for name in names},
                num_reachable=int(num_reachable.sum()),
                num_pruned=int(num_pruned.sum()),
                beam_seconds=beam_seconds,
                exhaustive_seconds=exhaustive_seconds,
                lost_share=_lost_share(beam, best),
                per_user=_per_user(*at_cutoff, num_distinct, cutoff, numbers, dataset, split),
            )
        )
    return gaps


def write_beam_gaps(folder: str | Path, results: Mapping[str, Evaluation]) -> None:
    """Writes `beam_gap.json`, which maps recommenders to their beam gaps. Removes the file if none was measured."""
    path = Path(folder) / "beam_gap.json"
    gaps = {name: result.beam_gap.to_dict() for name, result in results.items() if result.beam_gap is not None}
    if gaps:
        write_json(path, gaps)
    else:
        path.unlink(missing_ok=True)


def beam_gap_table(gap: BeamGap) -> str:
    """Makes a table that compares the beam search with the exact ranking. Lines below it give the pruned targets and
    the times."""
    # 1. Write one row per metric.
    rows = [["", f"{gap.num_beams} beams", "every item", "difference", "95 % interval"]]
    for name, difference in gap.gaps.items():
        interval = f"[{difference.low:+.4f}, {difference.high:+.4f}]"
        means = (f"{gap.beam[name]:.4f}", f"{gap.exhaustive[name]:.4f}")
        rows.append([name, *means, f"{difference.difference:+.4f}", interval])

    # 2. Write the pruned targets and the times.
    pruned = f"PruningRate@{gap.num_beams}: no target is among the {gap.num_beams} best items"
    if gap.pruning_rate is not None:
        pruned = (
            f"PruningRate@{gap.num_beams}: {gap.pruning_rate:.4f} (the beam search loses {gap.num_pruned} of the "
            f"{gap.num_reachable} targets among the {gap.num_beams} best items)"
        )
    lost = []
    if gap.lost_share is not None:
        lost = [f"of the {gap.num_beams} best items of each user, the beam search loses {gap.lost_share:.2%}"]
    times = f"time: {gap.beam_seconds:.1f} s by beam search, {gap.exhaustive_seconds:.1f} s with every item scored"
    caption = (
        f"beam gap over {gap.num_users} users: what this policy loses because its beam search prunes items (the gap "
        "does not bound what other policies can reach)"
    )
    return "\n".join([caption, "", *aligned(rows), "", pruned, *lost, times])


def _lost_share(beam: Rankings, exact: Rankings) -> float | None:
    """Returns the share of the items in the exact rankings that the beam search misses. None if there are no items."""
    rows, columns = np.nonzero(exact.items >= 0)
    items = exact.items[rows, columns]
    if not len(items):
        return None
    return 1 - len(_contained(beam.items, rows, items)) / len(items)


def _pruned(beam: Rankings, exact: Rankings, rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each row, the number of targets in the exact ranking, and how many of them the beam search misses,
    `(N,)` each."""
    targets = split_rows(rows, "targets")
    row_ids = targets.row_ids
    reachable = _contained(exact.items, row_ids, targets.values)
    lost = reachable - _contained(beam.items, row_ids, targets.values)
    num_reachable, num_lost = (
        np.bincount(np.array([row for row, _ in pairs], int), minlength=len(rows)) for pairs in (reachable, lost)
    )
    return num_reachable, num_lost


def _per_user(
    num_reachable: np.ndarray,
    num_pruned: np.ndarray,
    num_targets: np.ndarray,
    cutoff: int,
    numbers: np.ndarray,
    dataset: RecDataset,
    split: str,
) -> dict[str, np.ndarray]:
    """Returns `BeamGap.per_user`. `numbers` contains each ranked row's index in the split."""
    pruned, rate = np.full((2, len(held_out(dataset, split))), np.nan)
    pruned[numbers] = num_pruned / np.maximum(num_targets, 1)
    rate[numbers] = np.where(num_reachable > 0, num_pruned / np.maximum(num_reachable, 1), np.nan)
    return {f"pruned@{cutoff}": pruned, f"pruning_rate@{cutoff}": rate}


def _contained(ranked: np.ndarray, row_ids: np.ndarray, items: np.ndarray) -> set[tuple[int, int]]:
    """Returns the pairs (row, item), from `row_ids` and `items`, whose item is in `ranked[row]`. `ranked` is
    `(N, K)`."""
    hits, _ = metrics.find_hits(ranked, row_ids, items)
    found = np.nonzero(hits)[0]
    return set(zip(found.tolist(), ranked[hits].tolist(), strict=True))
