"""Writes an evaluation to a folder: the metrics, the values per user and the ranked items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trl_rec.evaluation.kept.files import METRICS, PER_USER, RANKINGS, STAMP, USERS, results_hash
from trl_rec.evaluation.kept.metrics_file import metrics_content
from trl_rec.evaluation.kept.rows import describe_rows
from trl_rec.evaluation.rankings import Rankings
from trl_rec.evaluation.results import Evaluation, held_out
from trl_rec.files import atomic_file, json_text
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset

NAME = pa.dictionary(pa.int32(), pa.string())
RANKING_COLUMNS = {"row": pa.int32(), "rank": pa.int32(), "item": pa.int32(), "score": pa.float32()}


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
    """Writes an evaluation into a folder, and replaces an earlier evaluation in the same folder.

    Args:
        folder (`str` or `Path`): The folder. It is created if necessary.
        results (`Mapping[str, Evaluation]`): Evaluation of each recommender by name. All must cover the same rows.
        dataset (`RecDataset`): The dataset that contains the split.
        split (`str`, *optional*, defaults to `"test"`): The split that was evaluated.
        ks (`Sequence[int]`): The cutoffs k of the metrics.
        exclude_history (`bool`): Whether the items of a user's history were excluded from the recommendations.
        settings (`Mapping[str, Any]`, *optional*): Other settings that the metrics depend on.
        recommender (`str`, *optional*): Name in `results` of the recommender that the run trained or evaluated. `None`
            if there are only baselines.
        seed (`int`, *optional*): Seed that the recommender was trained with.
        rows (`np.ndarray` of shape `(num_users,)`, *optional*): Numbers of the evaluated rows of the split, in
            ascending order. Defaults to all rows.
        targets (`Ragged`, *optional*): The items to use as the targets of each evaluated row, for example the
            candidates of a list to be ordered. Defaults to the targets of the split.
    """
    # 1. Prepare the content of all files, so that nothing is written if an argument is invalid.
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
        num_rows=len(held_out(dataset, split)),
    )
    if content["num_users"] != users.num_rows:
        raise ValueError(
            f"the results are over {content['num_users']} users, but 'rows' selects {users.num_rows} rows of the "
            f"{split} split; pass the numbers of the evaluated rows"
        )
    numbers = users["row"].to_numpy()
    tables = {
        USERS: [users],
        PER_USER: _per_user_tables(results, numbers),
        RANKINGS: [_ranking_table(name, one.rankings, numbers) for name, one in results.items() if one.rankings],
    }

    # 2. Write all files under temporary names. They are renamed when the block ends, `metrics.json` last.
    folder = Path(folder)
    stamp = {STAMP: results_hash(content)}
    with ExitStack() as files:
        temporary = files.enter_context(atomic_file(folder / METRICS))
        temporary.write_text(json_text(content, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        for name, parts in tables.items():
            _write_parts(files.enter_context(atomic_file(folder / name)), parts, _schema(name, parts), stamp)


def _per_user_tables(results: Mapping[str, Evaluation], numbers: np.ndarray) -> list[pa.Table]:
    """Returns a table per recommender. Each has a column for every metric that at least one recommender has."""
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
    """Returns a table with one line per recommended item, sorted by row and rank."""
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
    """Writes tables to one file. Each table has its own row groups, so that it can be read alone."""
    with pq.ParquetWriter(path, schema.with_metadata(metadata), compression="zstd") as writer:
        for part in parts:
            writer.write_table(part.replace_schema_metadata(metadata))
