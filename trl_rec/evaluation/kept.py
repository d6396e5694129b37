"""Keeps an evaluation in a folder and reads it back: the metrics, the values per user and the ranked items.

The folder holds `metrics.json`, which is written last, and three Parquet files that identify users by the number of
their row in the split, not by their ids:

- `per_user.parquet`: `recommender`, `row`, and one column per metric; null where a recommender lacks the metric.
- `rankings.parquet`: `recommender`, `row`, `rank` (from 1), `item` (its index in the catalogue) and `score` (null
  where the recommender has no scores). Missing ranks are left out.
- `users.parquet`: `row`, and what [`slices`] needs to know about the row, see [`describe_rows`].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trl_rec.evaluation.evaluated_rows import describe_rows
from trl_rec.evaluation.metrics_file import metrics_content
from trl_rec.evaluation.rankings import Rankings
from trl_rec.evaluation.results import Evaluation
from trl_rec.files import atomic_file, json_text
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset

METRICS = "metrics.json"
PER_USER = "per_user.parquet"
RANKINGS = "rankings.parquet"
USERS = "users.parquet"
# The keys of `metrics.json` that are fields of `KeptEvaluation` as they are.
KEPT_KEYS = ("split", "ks", "exclude_history", "num_users", "identity", "settings", "recommender", "seed")
KEPT_FILES = (PER_USER, RANKINGS, USERS)
NAME = pa.dictionary(pa.int32(), pa.string())
RANKING_COLUMNS = {"row": pa.int32(), "rank": pa.int32(), "item": pa.int32(), "score": pa.float32()}
STAMP = b"trl_rec.evaluation"  # key in the Parquet files' metadata: a hash of the results that they belong to
REMEDY = "evaluate again"


def write_evaluation(
    folder: str | Path,
    results: Mapping[str, Evaluation],
    *,
    dataset: RecDataset,
    split: str = "test",
    ks: Sequence[int],
    exclude_history: bool,
    settings: Mapping[str, Any] | None = None,
    recommender: str | None = None,
    seed: int | None = None,
    rows: np.ndarray | None = None,
    targets: Ragged | None = None,
) -> None:
    """Writes everything that was measured into a folder, and replaces an earlier evaluation there.

    Args:
        folder (`str` or `Path`): The folder. It is created if necessary.
        results (`Mapping[str, Evaluation]`): Evaluation of each recommender by name, all over the same rows.
        dataset (`RecDataset`): The dataset that contains the split.
        split (`str`, *optional*, defaults to `"test"`): The split that was evaluated.
        ks (`Sequence[int]`): The cutoffs k of the metrics.
        exclude_history (`bool`): Whether the items of a user's history were excluded from the recommendations.
        settings (`Mapping[str, Any]`, *optional*): Other settings that the metrics depend on.
        recommender (`str`, *optional*): Name in `results` of the recommender that the run trained or evaluated. `None`
            if there are only baselines.
        seed (`int`, *optional*): Seed that the recommender was trained with.
        rows (`np.ndarray` of shape `(num_users,)`, *optional*): Numbers of the evaluated rows of the split. Defaults
            to all rows.
        targets (`Ragged`, *optional*): The items that were to be ranked or ordered for each evaluated row. Defaults to
            the targets of the split.
    """
    # 1. Describe the rows. Everything is prepared before anything is written.
    users, fingerprint = describe_rows(dataset, split, rows=rows, targets=targets)
    content = metrics_content(
        results,
        split=split,
        ks=ks,
        exclude_history=exclude_history,
        settings={**(settings or {}), "dataset": str(dataset.path)},
        identity={"catalog": dataset.catalog.fingerprint, "rows": fingerprint},
        recommender=recommender,
        seed=seed,
    )
    if content["num_users"] != users.num_rows:
        raise ValueError(
            f"the results are over {content['num_users']} users, but the {split} split has {users.num_rows} rows; "
            "pass the rows that were evaluated"
        )
    numbers = users["row"].to_numpy()
    tables = {
        USERS: [users],
        PER_USER: _per_user_tables(results, numbers),
        RANKINGS: [_ranking_table(name, one.rankings, numbers) for name, one in results.items() if one.rankings],
    }

    # 2. Write all files under temporary names. They are renamed when the block ends, `metrics.json` last.
    folder = Path(folder)
    stamp = {STAMP: _stamp(content)}
    with ExitStack() as files:
        temporary = files.enter_context(atomic_file(folder / METRICS))
        temporary.write_text(json_text(content, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        for name, parts in tables.items():
            _write_parts(files.enter_context(atomic_file(folder / name)), parts, _schema(name, parts), stamp)


@dataclass(frozen=True, eq=False)
class KeptEvaluation:
    """An evaluation that was read from a folder by [`read_evaluation`].

    Args:
        folder (`Path`): The folder.
        split (`str`): The split that was evaluated.
        ks (`list[int]`): The cutoffs k of the metrics.
        exclude_history (`bool`): Whether the items of a user's history were excluded from the recommendations.
        num_users (`int`): Number of evaluated rows.
        identity (`dict[str, str]`): Fingerprints of the `catalog` and of the evaluated `rows`.
        settings (`dict`): Other settings that the metrics depend on, among them the `dataset` folder.
        recommender (`str`, *optional*): Name in `results` of the recommender that the run trained or evaluated.
        seed (`int`, *optional*): Seed that the recommender was trained with.
        results (`dict[str, Evaluation]`): Metrics, intervals and values per user of each recommender. The rankings
            are read by [`~KeptEvaluation.rankings_of`].
        users (`dict[str, np.ndarray]`): The columns of `users.parquet`, `(num_users,)` each: `row`, `target_count`,
            `history_length` and `group`.
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
        """Reads the rankings of a recommender. Returns `None` if none were kept, as for the best of several lists."""
        if name not in self.results:
            raise ValueError(f"{self.folder} has no results of {name!r}, only of {', '.join(self.results)}")
        table = _read(self.folder, RANKINGS, filters=[("recommender", "==", name)])
        if not table.num_rows:
            return None

        # Place each rank in its row. Missing ranks are not in the file.
        row = table["row"].to_numpy()
        rank = table["rank"].to_numpy() - 1
        if not np.isin(row, self.users["row"]).all() or rank.min() < 0:
            raise ValueError(f"{self.folder / RANKINGS} is damaged: it has ranks of other rows; {REMEDY}")
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
    """Reads an evaluation that [`write_evaluation`] wrote. Raises `ValueError` if the folder has none or is damaged.

    Args:
        folder (`str` or `Path`): The output folder of `trl-rec evaluate` or of a training verb.
    """
    folder = Path(folder)
    content = _read_metrics(folder)
    users = _read(folder, USERS, content)
    per_user = _read(folder, PER_USER, content)
    _read(folder, RANKINGS, content, columns=[])  # only checks that the file is there and belongs to the others

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
    """Raises `ValueError` if two evaluations differ in their items, split, users, or excluded items."""
    which = f"{first.folder} and {second.folder}"
    if first.identity["catalog"] != second.identity["catalog"]:
        raise ValueError(f"{which} recommend from different catalogues; compare runs on the same dataset folder")
    if first.split != second.split:
        raise ValueError(
            f"{which} were evaluated on different splits, {first.split} and {second.split}; evaluate both on one split"
        )
    if first.num_users != second.num_users:
        raise ValueError(
            f"{which} were evaluated on different users, {first.num_users} and {second.num_users} of them; evaluate "
            "both with the same max_users"
        )
    if first.identity["rows"] != second.identity["rows"]:
        raise ValueError(
            f"{which} were evaluated on users with other histories or targets; compare runs on the same dataset folder"
        )
    if first.exclude_history != second.exclude_history:
        excluding, other = (first, second) if first.exclude_history else (second, first)
        raise ValueError(
            f"{excluding.folder} excludes the items of a user's history and {other.folder} does not; evaluate both "
            "with the same exclude_history"
        )


def _per_user_tables(results: Mapping[str, Evaluation], numbers: np.ndarray) -> list[pa.Table]:
    """Returns a table per recommender. Each table has a column for every metric that any recommender has."""
    metrics = dict.fromkeys(metric for one in results.values() for metric in one.per_user)
    tables = []
    for name, one in results.items():
        columns = {metric: one.per_user.get(metric) for metric in metrics}
        missing = pa.nulls(len(numbers), pa.float64())
        values = {
            metric: missing if column is None else pa.array(np.asarray(column, np.float64))
            for metric, column in columns.items()
        }
        tables.append(pa.table({"recommender": _names(name, len(numbers)), "row": pa.array(numbers), **values}))
    return tables


def _ranking_table(name: str, rankings: Rankings, numbers: np.ndarray) -> pa.Table:
    """Returns a line for each rank with an item, sorted by row and rank."""
    if len(rankings.items) != len(numbers):
        raise ValueError(f"{name} has rankings for {len(rankings.items)} rows, but {len(numbers)} were evaluated")
    row, rank = np.nonzero(rankings.items != -1)
    columns = {"row": numbers[row], "rank": rank + 1, "item": rankings.items[row, rank]}
    arrays = {column: pa.array(values, RANKING_COLUMNS[column]) for column, values in columns.items()}
    if rankings.scores is None:
        arrays["score"] = pa.nulls(len(row), pa.float32())
    else:
        arrays["score"] = pa.array(rankings.scores[row, rank], pa.float32())
    return pa.table({"recommender": _names(name, len(row)), **arrays})


def _names(name: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([name]))


def _schema(name: str, parts: Sequence[pa.Table]) -> pa.Schema:
    """Returns the schema of a file. Only `rankings.parquet` may have no parts."""
    if parts:
        return parts[0].schema
    return pa.schema({"recommender": NAME, **RANKING_COLUMNS})


def _write_parts(path: Path, parts: Sequence[pa.Table], schema: pa.Schema, metadata: Mapping[bytes, bytes]) -> None:
    """Writes tables one after the other, each into row groups of its own, so that one can be read without the rest."""
    with pq.ParquetWriter(path, schema.with_metadata(metadata), compression="zstd") as writer:
        for part in parts:
            writer.write_table(part.replace_schema_metadata(metadata))


def _stamp(content: Mapping[str, Any]) -> bytes:
    """Returns a hash of the results and of the rows that they are about."""
    text = json.dumps([content["results"], content["identity"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16].encode()


def _read_metrics(folder: Path) -> dict[str, Any]:
    """Reads `metrics.json`. Raises `ValueError` if the folder has none, or one that an older version wrote."""
    path = folder / METRICS
    if not path.is_file():
        raise ValueError(
            f"{folder} does not contain an evaluation (metrics.json is missing); name the output folder of trl-rec "
            "evaluate or of a training verb"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}); {REMEDY}") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ValueError(f"{path} does not contain the results of an evaluation; {REMEDY}")
    if not isinstance(content.get("identity"), dict):
        raise ValueError(f"{path} was written by an older version, which kept no values per user; {REMEDY}")
    return content


def _read(folder: Path, name: str, content: Mapping[str, Any] | None = None, **options: Any) -> pa.Table:
    """Reads a Parquet file of the folder, after checking that it belongs to the results in `content` if given."""
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder} has no {name}, so the evaluation in it is incomplete; {REMEDY}")
    try:
        table = pq.read_table(path, **options)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}); {REMEDY}") from error
    if content is not None and (table.schema.metadata or {}).get(STAMP) != _stamp(content):
        raise ValueError(f"{path} does not belong to the results in {METRICS}; {REMEDY}")
    return table


def _values_of(per_user: pa.Table, name: str, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the values per user of a recommender, `(num_users,)` each, without the metrics that it lacks."""
    own = per_user.filter(pc.equal(per_user["recommender"], name))
    if not np.array_equal(own["row"].to_numpy(), numbers):
        raise ValueError(f"the rows of {name} are not those of {USERS}")
    metrics = [column for column in own.column_names if column not in ("recommender", "row")]
    return {metric: own[metric].to_numpy() for metric in metrics if not own[metric].null_count}
