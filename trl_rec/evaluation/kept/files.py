"""Defines the names of the files in which an evaluation is stored, and a hash that identifies files of the same
evaluation.

The folder of an evaluation holds `metrics.json`, which is written last, and three Parquet files. In the Parquet files,
the column `row` (the row number in the split) identifies a user, because user ids are not stored. These are the files
and their columns:

- `per_user.parquet`: `recommender`, `row`, and one column per metric; null where a recommender lacks the metric.
- `rankings.parquet`: `recommender`, `row`, `rank` (from 1), `item` (its index in the catalogue) and `score` (null
  where the recommender has no scores). A user for whom too few items were found has no entries for the last ranks.
- `users.parquet`: `row`, and the columns by which [`slices`] divides users, see [`describe_rows`].

Until the evaluation is complete, the subfolder `finished-rows` contains the results of the rows that have been ranked
so far.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


METRICS = "metrics.json"
PER_USER = "per_user.parquet"
RANKINGS = "rankings.parquet"
USERS = "users.parquet"
KEPT_FILES = (PER_USER, RANKINGS, USERS)
FINISHED = "finished-rows"
STAMP = b"trl_rec.evaluation"  # metadata key in the Parquet files; its value is returned by `results_hash`


def results_hash(content: Mapping[str, Any]) -> bytes:
    """Returns a hash of the results, the catalogue and the evaluated rows, from the content of `metrics.json`."""
    text = json.dumps([content["results"], content["identity"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16].encode()
