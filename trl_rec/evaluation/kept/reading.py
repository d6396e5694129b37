"""Reads an evaluation from the folder that it was written to, and checks whether two evaluations can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trl_rec.evaluation.kept.files import METRICS, PER_USER, RANKINGS, STAMP, USERS, results_hash
from trl_rec.evaluation.rankings import Rankings
from trl_rec.evaluation.results import Evaluation


# The keys of `metrics.json` whose values become fields of `KeptEvaluation` unchanged.
KEPT_KEYS = ("split", "ks", "exclude_history", "num_users", "identity", "settings", "recommender", "seed")
REMEDY = "evaluate again"


@dataclass(frozen=True, eq=False)
class KeptEvaluation:
    """An evaluation that was read from a folder by [`read_evaluation`].

    Args:
        folder (`Path`): The folder.
        split (`str`): The split that was evaluated.
        ks (`list[int]`): The cutoffs k of the metrics.
        exclude_history (`bool`): Whether the items of a user's history were excluded from the recommendations.
        num_users (`int`): Number of evaluated users. Each user is one row of the split.
        identity (`dict[str, str]`): Fingerprints of the `catalog` and of the evaluated `rows`.
        settings (`dict`): Other settings that the metrics depend on, among them the `dataset` folder.
        recommender (`str`, *optional*): Key in `results` of the recommender that was trained or evaluated. `None` if
            there are only baselines.
        seed (`int`, *optional*): Seed that the recommender was trained with.
        results (`dict[str, Evaluation]`): Metrics, intervals and values per user of each recommender. The rankings
            are read by [`~KeptEvaluation.rankings_of`].
        users (`dict[str, np.ndarray]`): The columns of `users.parquet`, `(num_users,)` each: `row`, `target_count`,
            `history_length` and `group`. [`describe_rows`] explains them.
    """

    folder: Path
    split: str
    ks: list[int]
    exclude_history: bool
    num_users: int
    identity: dict[str, str]
    settings: dict[str, Any]
    recommender: str | None
    seed: int | None
    results: dict[str, Evaluation]
    users: dict[str, np.ndarray] = field(repr=False)

    def rankings_of(self, name: str) -> Rankings | None:
        """Reads the rankings of a recommender.

        Returns `None` if its rankings were not saved. For example, rankings of lists sampled for Best-of-N are never
        saved.
        """
        if name not in self.results:
            raise ValueError(f"{self.folder} has no results of {name!r}, only of {', '.join(self.results)}")
        table = _read(self.folder, RANKINGS, filters=[("recommender", "==", name)])
        if not table.num_rows:
            return None

        # Place each item at its rank, in the row of its user. Ranks that are not in the file stay -1.
        row = table["row"].to_numpy()
        rank = table["rank"].to_numpy() - 1
        if not np.isin(row, self.users["row"]).all() or rank.min() < 0:
            raise ValueError(
                f"{self.folder / RANKINGS} is damaged: it has rankings for rows of the split that were not evaluated, "
                f"or ranks below 1; {REMEDY}"
            )
        position = np.searchsorted(self.users["row"], row)
        shape = (self.num_users, max(*self.ks, int(rank.max()) + 1))
        items = np.full(shape, -1, np.int64)
        items[position, rank] = table["item"].to_numpy()
        if table["score"].null_count:
            return Rankings(items)
        scores = np.full(shape, -np.inf, np.float32)
        scores[position, rank] = table["score"].to_numpy()
        return Rankings(items, scores)


def read_evaluation(folder: str | Path) -> KeptEvaluation:
    """Reads an evaluation that [`write_evaluation`] wrote.

    Raises `ValueError` if there is no evaluation, or if the evaluation is incomplete or damaged.

    Args:
        folder (`str` or `Path`): The output folder of `trl-rec evaluate`, or of a training command such as
            `trl-rec bear`.
    """
    folder = Path(folder)
    content = _read_metrics(folder)
    users = _read(folder, USERS, content)
    per_user = _read(folder, PER_USER, content)
    _read(folder, RANKINGS, content, columns=[])  # reads no column, only checks the file

    try:
        results = {
            name: Evaluation(
                dict(entry["metrics"]),
                {metric: (low, high) for metric, (low, high) in entry["intervals"].items()},
                _values_of(per_user, name, users["row"].to_numpy()),
            )
            for name, entry in content["results"].items()
        }
        return KeptEvaluation(
            folder=folder,
            results=results,
            users={name: users[name].to_numpy(zero_copy_only=False) for name in users.column_names},
            **{name: content[name] for name in KEPT_KEYS},
        )
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise ValueError(f"the evaluation in {folder} is damaged ({error!r}); {REMEDY}") from error


def check_comparable(first: KeptEvaluation, second: KeptEvaluation) -> None:
    """Raises `ValueError` if two evaluations differ in their catalogue, split, users, or `exclude_history`."""
    which = f"{first.folder} and {second.folder}"
    if first.identity["catalog"] != second.identity["catalog"]:
        raise ValueError(f"{which} recommend from different catalogues; compare runs on the same dataset folder")
    if first.split != second.split:
        raise ValueError(
            f"{which} were evaluated on different splits, {first.split} and {second.split}; evaluate both on one split"
        )
    if first.num_users != second.num_users:
        raise ValueError(
            f"{which} were evaluated on different numbers of users, {first.num_users} and {second.num_users}; "
            "evaluate both on the same number (max_test_users of a training command such as trl-rec bear, max_users "
            "of trl-rec evaluate)"
        )
    if first.identity["rows"] != second.identity["rows"]:
        raise ValueError(
            f"{which} were evaluated on users whose histories or targets differ; compare runs on the same dataset "
            "folder"
        )
    if first.exclude_history != second.exclude_history:
        excluding, other = (first, second) if first.exclude_history else (second, first)
        raise ValueError(
            f"{excluding.folder} excludes the items of a user's history and {other.folder} does not; evaluate both "
            "with the same exclude_history"
        )


def _read_metrics(folder: Path) -> dict[str, Any]:
    """Reads `metrics.json`. Raises `ValueError` if it is missing, damaged, or written without values per user."""
    path = folder / METRICS
    if not path.is_file():
        raise ValueError(
            f"{folder} does not contain an evaluation (metrics.json is missing); give the output folder of trl-rec "
            "evaluate or of a training command such as trl-rec bear"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}); {REMEDY}") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ValueError(f"{path} does not contain the results of an evaluation; {REMEDY}")
    if not isinstance(content.get("identity"), dict):
        raise ValueError(f"{path} was written without values per user; {REMEDY}")
    return content


def _read(folder: Path, name: str, content: Mapping[str, Any] | None = None, **options: Any) -> pa.Table:
    """Reads a Parquet file of the folder.

    If the content of `metrics.json` is given, checks that the file belongs to the same results.
    """
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder} has no {name}, so the evaluation in it is incomplete; {REMEDY}")
    try:
        table = pq.read_table(path, **options)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}); {REMEDY}") from error
    if content is not None and (table.schema.metadata or {}).get(STAMP) != results_hash(content):
        raise ValueError(f"{path} does not belong to the results in {METRICS}; {REMEDY}")
    return table


def _values_of(per_user: pa.Table, name: str, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the values per user, `(num_users,)`, of each metric that a recommender has."""
    own = per_user.filter(pc.equal(per_user["recommender"], name))
    if not np.array_equal(own["row"].to_numpy(), numbers):
        raise ValueError(f"the rows of {name} are not those of {USERS}")
    metrics = [column for column in own.column_names if column not in ("recommender", "row")]
    return {metric: own[metric].to_numpy() for metric in metrics if not own[metric].null_count}
