"""Recommends items to all users, and writes the lists to a Parquet file, with one row per user and rank: `user_id,
rank, item_id, score`.

Users are divided into parts of a fixed size, and the parts are divided among the processes. A finished part is stored
next to the output until the file is complete. After an interruption, the same call therefore computes only the missing
parts, even with another number of processes. Only one part per process is in memory at a time.

Legend: U users of a part, K ranks.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from tqdm.auto import tqdm

from trl_rec.decoding.item_filter import ItemFilter
from trl_rec.decoding.recommender import Recommender
from trl_rec.decoding.requests import Ranked, Request
from trl_rec.evaluation.cost import say
from trl_rec.evaluation.kept.content_hash import Hashed, Unidentified, content_hash
from trl_rec.evaluation.kept.finished_rows import PACKAGES
from trl_rec.evaluation.kept.metrics_file import package_version
from trl_rec.files import atomic_file, exclusive, is_temporary
from trl_rec.parts import PartStore
from trl_rec.ragged import Ragged, within
from trl_rec.ranges import COUNT
from trl_rec.serving.user_histories import UserHistories
from trl_rec.trainer.base.processes import on_main_process


PART_SIZE = 512  # users per part
SCHEMA = pa.schema([("user_id", pa.string()), ("rank", pa.int32()), ("item_id", pa.string()), ("score", pa.float32())])
NAME = b"trl_rec"  # key of the settings in the metadata of the file


@dataclass(frozen=True)
class WrittenLists:
    """Counts of the lists in a file.

    Args:
        users (`int`): Number of users.
        rows (`int`): Number of rows, over all lists.
        fallback (`int`): Number of users whose list was ranked by the prior alone, because their history is empty.
        short (`int`): Number of users whose list has fewer than `k` items. If the catalogue has fewer than `k` items
            (without retired ones), their number takes the place of `k`.
    """

    users: int
    rows: int
    fallback: int
    short: int


def write_lists(
    recommender: Recommender,
    given: UserHistories,
    output: str | Path,
    k: int = 10,
    *,
    exclude_history: bool = True,
    one_filter: ItemFilter | None = None,
    batch_size: int = 64,
    part_size: int = PART_SIZE,
    overwrite: bool = False,
) -> WrittenLists:
    """Recommends to all users, as [`Recommender.recommend_batch`] does, and writes the lists to a Parquet file.

    Every process must call this function. The users are divided among the processes. The file does not depend on the
    number of processes, except for the rounding of the scores. Users are written in the order of `given`.

    Args:
        recommender ([`Recommender`]): The recommender.
        given ([`UserHistories`]): The users and their histories.
        output (`str` or `Path`): The file. Its name must end in `.parquet`.
        k (`int`, *optional*, defaults to `10`): Number of items per user. If the catalogue has fewer items, `k` is
            reduced to their number.
        exclude_history (`bool`, *optional*, defaults to `True`): Whether to leave out the items of the history.
        one_filter ([`ItemFilter`], *optional*): Which items may be recommended.
        batch_size (`int`, *optional*, defaults to `64`): Maximum number of prompts per forward pass.
        part_size (`int`, *optional*, defaults to `512`): Number of users per part.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace the file if it exists.

    Returns:
        [`WrittenLists`]: The counts.
    """
    # 1. Check everything before the first forward pass.
    output = Path(output)
    COUNT.check("k", k)
    COUNT.check("batch_size", batch_size)
    COUNT.check("part_size", part_size)
    if output.suffix != ".parquet":
        raise ValueError(f"{output} must end in .parquet; choose another name")
    if not len(given):
        raise ValueError("there are no users to recommend to; give at least one user")
    if recommender.prompt_format.users is not None and given.users is None:
        raise ValueError(
            "the model's prompts contain the user; take the users from the dataset that the model was trained on"
        )
    one_filter = one_filter or ItemFilter()
    recommender.check_filter(one_filter)
    on_main_process(lambda: _check_output(output, overwrite))

    # 2. Compute the missing parts.
    job = _Job(recommender, given, k, exclude_history, one_filter, batch_size)
    store = PartStore(_folder(output), len(given), part_size, job.fingerprint_of(on_main_process(job.describe)))
    with ExitStack() as held:
        on_main_process(lambda: _lock(output, held))
        _compute(job, store)
        PartialState().wait_for_everyone()

        # 3. Write the file.
        return WrittenLists(**on_main_process(lambda: asdict(_write(job, store, output))))


class _Job:
    """Computes the lists of one part of the users at a time."""

    def __init__(
        self,
        recommender: Recommender,
        given: UserHistories,
        k: int,
        exclude_history: bool,
        one_filter: ItemFilter,
        batch_size: int,
    ) -> None:
        self.recommender = recommender
        self.given = given
        self.k = min(k, recommender.catalog.num_recommendable)
        self.exclude_history = exclude_history
        self.one_filter = one_filter
        self._batch_size = batch_size
        self._mask = recommender.masks.mask(one_filter)
        self._limits = recommender.ranker.groups.limits(one_filter.max_per)

    def compute(self, part: range) -> np.ndarray:
        """Returns the lists of the users of a part as integers, `(U, 2 * K + 1)`.

        A row contains the items, the bits of their scores, and whether the list was ranked by the prior alone.
        """
        histories = self.given.histories.take(np.arange(part.start, part.stop))
        nobody = np.empty(0, np.int64)
        requests = [
            Request(
                history=histories[row].astype(np.int64),
                num_unknown=0,
                k=self.k,
                wanted=self.k,
                user=None if self.given.users is None else int(self.given.users[part.start + row]),
                exclude=nobody,
                mask=self._mask,
                limits=self._limits,
            )
            for row in range(len(histories))
        ]
        ranked = self.recommender.ranker.rank(
            requests, exclude_history=self.exclude_history, batch_size=self._batch_size
        )
        return _as_integers(ranked, self.k)

    def describe(self) -> str:
        """Returns a hash of everything that the lists depend on, except the users and their histories."""
        one = self.recommender
        mask = None if self._mask is None else self._mask.items
        versions = {package: package_version(package) for package in PACKAGES}
        content = (
            versions,
            Hashed(one.model),
            one.prompt_format,
            one.trie,
            one.prior,
            one.settings,
            self.k,
            self.exclude_history,
            mask,
            dict(self.one_filter.max_per or {}),
        )
        try:
            return content_hash(content)
        except Unidentified:  # a prior that calls a function has no hash, so a later call computes all parts again
            return uuid.uuid4().hex

    def fingerprint_of(self, common: str) -> Any:
        """Returns a function that hashes everything that the lists of a part depend on.

        Args:
            common (`str`): The hash from [`describe`].
        """

        def _fingerprint(part: range) -> str:
            histories = self.given.histories.take(np.arange(part.start, part.stop))
            digest = blake2b(common.encode(), digest_size=16)
            digest.update(np.ascontiguousarray(histories.values, np.int64).tobytes())
            digest.update(histories.offsets.tobytes())
            if self.given.users is not None:
                digest.update(self.given.users[part.start : part.stop].tobytes())
            return digest.hexdigest()

        return _fingerprint


def _compute(job: _Job, store: PartStore) -> None:
    """Computes the parts of this process that are missing in the store."""
    state = PartialState()
    own = store.parts[state.process_index :: state.num_processes]
    finished = {part.start for part in own if store.read(part) is not None}
    missing = [part for part in own if part.start not in finished]
    if len(missing) < len(own):
        kept = len(own) - len(missing)
        say(f"{kept:,} of {len(own):,} parts are kept from an interrupted call")

    total = sum(map(len, missing))
    label = "recommending" if state.num_processes == 1 else f"recommending (1 of {state.num_processes} processes)"
    with tqdm(total=total, desc=label, unit="user", disable=not state.is_local_main_process) as progress:
        for part in missing:
            store.write(part, job.compute(part))
            progress.update(len(part))


def _write(job: _Job, store: PartStore, output: Path) -> WrittenLists:
    """Writes the file from the parts, and removes the parts."""
    settings = {
        "k": job.k,
        "exclude_history": job.exclude_history,
        "where": job.one_filter.where,
        "max_per": job.one_filter.max_per,
    }
    metadata = {NAME: json.dumps(settings, default=str)}
    counts = np.zeros(4, np.int64)
    with atomic_file(output) as temporary, pq.ParquetWriter(temporary, SCHEMA.with_metadata(metadata)) as writer:
        for table, some in _tables(job, store):
            writer.write_table(table)
            counts += some
    shutil.rmtree(_folder(output), ignore_errors=True)
    return WrittenLists(*map(int, counts))


def _tables(job: _Job, store: PartStore) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Yields the rows of each part, and its counts in the order of [`WrittenLists`]."""
    item_ids = pa.array(job.recommender.catalog.ids, pa.string())
    for part in store.parts:
        lists = store.read(part)
        if lists is None:
            raise ValueError(
                f"the part that begins with row {part.start} of the users is missing in {store.folder}; all processes "
                "must share this folder"
            )
        items = lists[:, : job.k]
        scores = np.ascontiguousarray(lists[:, job.k : 2 * job.k]).view(np.float32)
        lengths = (items >= 0).sum(1)
        users = part.start + np.repeat(np.arange(len(part)), lengths)
        table = pa.table(
            {
                "user_id": job.given.user_ids.take(pa.array(users)).cast(pa.string()),
                "rank": pa.array(within(lengths) + 1, pa.int32()),
                "item_id": item_ids.take(pa.array(items[items >= 0])),
                "score": pa.array(scores[items >= 0], pa.float32()),
            },
            schema=SCHEMA.with_metadata(None),
        )
        yield table, np.array([len(part), len(users), int(lists[:, -1].sum()), int((lengths < job.k).sum())])


def _as_integers(ranked: list[Ranked], k: int) -> np.ndarray:
    """Returns lists as an array of 32-bit integers, `(U, 2 * K + 1)`."""
    lengths = np.array([len(one.items) for one in ranked])
    items = Ragged.from_lengths(np.array([item for one in ranked for item in one.items], np.int32), lengths)
    scores = Ragged.from_lengths(np.array([score for one in ranked for score in one.scores], np.float32), lengths)
    bits = scores.padded(fill=-np.inf, width=k).view(np.int32)
    fallback = np.array([[one.fallback] for one in ranked], np.int32)
    return np.concatenate([items.padded(width=k), bits, fallback], 1)


def _folder(output: Path) -> Path:
    """Returns the folder of the finished parts."""
    return output.with_name(f".{output.name}.parts")


def _check_output(output: Path, overwrite: bool) -> None:
    """Raises `ValueError` if the file must not be written."""
    if output.exists() and not overwrite:
        raise ValueError(f"{output} already exists; choose another name, or set overwrite")
    if output.is_dir():
        raise ValueError(f"{output} is a folder; choose the name of a file")


def _lock(output: Path, held: ExitStack) -> None:
    """Locks the parts of an output until `held` is closed, and removes unfinished files of a killed process."""
    folder = _folder(output)
    held.enter_context(exclusive(folder))
    unfinished = [path for path in output.parent.glob(".*.tmp") if is_temporary(path, output.name)]
    unfinished += [path for path in folder.glob(".*.tmp") if is_temporary(path)]
    for path in unfinished:
        path.unlink(missing_ok=True)
