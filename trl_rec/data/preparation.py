"""`prepare`: a source is read, filtered, split and saved as one dataset folder, at once or not at all.

(The module is not called `prepare`, because it would hide the function of that name in `trl_rec.data`.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from trl_rec.data.card import make_card
from trl_rec.data.dataset import RecDataset, load, read_card, save
from trl_rec.data.filtering import k_core
from trl_rec.data.indexed_log import CodedLog, code
from trl_rec.data.leaks import check_leaks
from trl_rec.data.log import SPLITS, Log, Options
from trl_rec.data.readers import READERS, locate
from trl_rec.data.splits import split_log, split_windows
from trl_rec.data.windows import code_windows
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


logger = logging.getLogger(__name__)

# All that a dataset folder holds; the second line is what semantic IDs of these data leave in it.
FILES = {"catalog", "users.parquet", "interactions.parquet", *SPLITS, "card.json"}
FILES |= {"vectors", "id_encoder.json", "id_encoder.safetensors", "semantic_ids.svg"}
LAYOUT = 1  # counts up when folders of an earlier version must be made anew


def prepare(
    source: str | Path,
    output_dir: str | Path,
    *,
    format: str | None = None,
    split: str | None = None,
    num_held_out: int | None = None,
    min_user_interactions: int = 0,
    min_item_interactions: int = 0,
    columns: Mapping[str, str] | None = None,
    title_column: str | None = None,
    group_column: str | None = None,
    group_separator: str = "|",
    seed: int = 0,
    toy_users: int = 300,
    toy_items: int = 200,
    overwrite: bool = False,
) -> RecDataset:
    """Makes a dataset folder from an interaction log, and loads it. A folder made before from the same files with the
    same settings is loaded as it is.

    Args:
        source (`str` or `Path`): Folder of the source's files, or `"toy"` (made from the seed), or `"ml-100k"`
            (fetched once, then cached); a folder of such a name is given as `"./toy"`.
        output_dir (`str` or `Path`):
            The dataset folder. It appears when all is done; a failure leaves nothing behind.
        format (`str`, *optional*):
            `table`, `recbole`, `bigrec`, `lcrec`, `ml-100k` or `toy`; found out from the files by default.
        split (`str`, *optional*):
            `"leave_one_out"` (the default), `"leave_last"` or `"time"`; `bigrec` data is split already.
        num_held_out (`int`, *optional*): With `"leave_last"`: items of each user that are the test, and as many before
            them that are the validation; 10 by default. Users with fewer than `2 * num_held_out + 1` only train.
        min_user_interactions (`int`, *optional*, defaults to `0`): k-core: users with fewer interactions are dropped,
            again and again; users and items left without any go too.
        min_item_interactions (`int`, *optional*, defaults to `0`):
            The same for items.
        columns (`Mapping[str, str]`, *optional*):
            For `table`: our names (`user_id item_id timestamp rating title`) to the source's.
        title_column (`str`, *optional*): For `recbole`: the item column that is the title, if it is not `title`,
            `movie_title`, `name` or `item_name`.
        group_column (`str`, *optional*):
            Item column with the groups (genres, brands) that the measures of fairness and diversity go by.
        group_separator (`str`, *optional*, defaults to `"|"`):
            What stands between several groups of one item, where they are text.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the toy log.
        toy_users (`int`, *optional*, defaults to `300`):
            Users of the toy log.
        toy_items (`int`, *optional*, defaults to `200`):
            Items of the toy log.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace a dataset folder that was made otherwise.
    """
    output_dir = Path(output_dir).absolute()
    format, files = locate(source, format)
    columns = {ours: theirs for ours, theirs in (columns or {}).items() if ours != theirs} or None
    options = Options(columns, title_column, group_column, group_separator, seed, toy_users, toy_items)
    settings = _settings(
        format, _split(format, split, num_held_out), min_user_interactions, min_item_interactions, options
    )
    sources = {path.name: _sha256(path) for path in files.values()}
    if _is_made(output_dir, settings, sources, overwrite):
        logger.info("%s is there already, made from the same files with the same settings", output_dir)
        return load(output_dir)
    logger.info("reading %s (%s)", source, format)
    log = READERS[format].read(files, options)
    made = _from_windows(log) if log.windows else _from_interactions(log, settings)
    splits = _checked_splits(made.splits, settings["split"])
    catalog = _catalog(made.log.items, log.group_column)
    card = make_card(
        made.log,
        catalog,
        made.splits,
        settings=settings,
        sources=sources,
        dropped=made.dropped,
        cold_users=made.cold_users,
        notes=log.notes,
    )
    logger.info("writing %s", output_dir)
    with _replacing(output_dir) as folder:
        save(folder, catalog, made.log.users, made.log.to_table(), splits, card)
    return load(output_dir)


@dataclass(frozen=True, eq=False)
class _Made:
    log: CodedLog
    splits: dict[str, pa.Table]
    cold_users: dict[str, int]
    dropped: dict[str, int]


def _split(format: str, split: str | None, num_held_out: int | None) -> dict[str, Any]:
    """The rule of the splits."""
    if format == "bigrec":
        if split not in (None, "windows"):
            raise ValueError(
                "bigrec data is filtered and split by its source; leave split and the k-core's minima out"
            )
        split = "windows"
    elif split not in (None, "leave_one_out", "leave_last", "time"):
        raise ValueError(f"unknown split {split!r}; choose leave_one_out, leave_last or time")
    split = split or "leave_one_out"
    if split == "leave_last":
        num_held_out = 10 if num_held_out is None else num_held_out
        if num_held_out < 1:
            raise ValueError(f"num_held_out must be at least 1, not {num_held_out}")
        return {"split": split, "num_held_out": num_held_out}
    if num_held_out is not None:
        raise ValueError(f"num_held_out has no effect with the split {split}; leave it out, or choose leave_last")
    return {"split": split}


def _settings(format: str, split: dict[str, Any], min_user: int, min_item: int, options: Options) -> dict[str, Any]:
    """What decides the dataset besides its source; options that would have no effect are refused."""
    taken, given = READERS[format].OPTIONS, asdict(options)
    for name, default in asdict(Options()).items():
        if name not in taken | {"seed"} and given[name] != default:  # a seed may be given throughout a recipe
            raise ValueError(f"the format {format} takes no {name}; leave it out")
    if format == "bigrec" and max(min_user, min_item) > 0:
        raise ValueError("bigrec data is filtered and split by its source; leave split and the k-core's minima out")
    minima = {"min_user_interactions": min_user, "min_item_interactions": min_item}
    return {"layout": LAYOUT, "format": format, **split, **minima, **{name: given[name] for name in sorted(taken)}}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_made(output_dir: Path, settings: dict[str, Any], sources: dict[str, str], overwrite: bool) -> bool:
    """Whether the folder holds this very dataset; refuses a folder that may not be replaced."""
    if not (output_dir / "card.json").is_file():
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise ValueError(f"{output_dir} exists and is not a dataset folder; choose another output_dir")
        return False
    card = read_card(output_dir)  # refuses a card of something else, which is never to be replaced
    if overwrite:
        foreign = sorted({path.name for path in output_dir.iterdir()} - FILES)
        if foreign:
            raise ValueError(
                f"{output_dir} also holds {foreign[0]}, which overwriting would delete; move it elsewhere first"
            )
        return False
    if (card["settings"], card["sources"]) != (json.loads(json.dumps(settings)), sources):
        raise ValueError(
            f"{output_dir} holds a dataset made with other settings or from other files; replace it with overwrite=True"
        )
    return True


def _from_interactions(log: Log, settings: dict[str, Any]) -> _Made:
    if settings["split"] == "time" and not log.timed:
        raise ValueError("the source holds no timestamps to split by; use split leave_one_out")
    coded = code(log)
    kept = k_core(coded, settings["min_user_interactions"], settings["min_item_interactions"])
    dropped = {
        "users": coded.users.num_rows - kept.users.num_rows,
        "items": coded.items.num_rows - kept.items.num_rows,
        "interactions": len(coded.user) - len(kept.user),
    }
    logger.info(
        "splitting %d interactions of %d users and %d items", len(kept.user), kept.users.num_rows, kept.items.num_rows
    )
    splits, cold_users = split_log(kept, settings["split"], settings.get("num_held_out", 1))
    return _Made(kept, splits, cold_users, dropped)


def _from_windows(log: Log) -> _Made:
    coded, windows = code_windows(log)
    logger.info("taking %s windows as they come", " + ".join(str(len(windows[split].user)) for split in SPLITS))
    cold = {name: len(np.setdiff1d(windows[name].user, windows["train"].user)) for name in ("validation", "test")}
    return _Made(coded, split_windows(windows), cold, dict.fromkeys(("users", "items", "interactions"), 0))


def _checked_splits(tables: dict[str, pa.Table], rule: str) -> dict[str, Dataset]:
    for name, table in tables.items():
        if table.num_rows == 0:
            raise ValueError(
                f"the {name} split is empty under {rule}; give a longer log, lower minima, or another split"
            )
    splits = {name: Dataset(InMemoryTable(table), split=name) for name, table in tables.items()}
    check_leaks(**splits, split=rule)
    return splits


def _catalog(items: pa.Table, group_column: str | None) -> ItemCatalog:
    """The catalogue, its semantic IDs taken from their column where the source had some."""
    if "semantic_id" not in items.column_names:
        return ItemCatalog(items, group_column=group_column)
    tokens = Ragged.from_arrow(items["semantic_id"])
    return ItemCatalog(items.drop_columns(["semantic_id"]), group_column=group_column, semantic_ids=tokens)


@contextmanager
def _replacing(output_dir: Path) -> Iterator[Path]:
    """A new folder beside `output_dir` that takes its place at the end, or vanishes on failure with the parents made
    for it."""
    folder, made = _beside(output_dir), [parent for parent in output_dir.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True)
        yield folder
        if output_dir.exists():
            _exchange(output_dir, folder)
        else:
            folder.rename(output_dir)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:  # the innermost first
            with suppress(OSError):  # it holds something
                parent.rmdir()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}-{uuid.uuid4().hex}")


def _exchange(folder: Path, new: Path) -> None:
    """All in `folder` replaced by all in `new`, or left as it was. The folder stays: it may be somebody's current
    one."""
    old = _beside(folder)
    old.mkdir()
    try:
        _move(folder, old)
        _move(new, folder)
    except BaseException:
        _move(old, folder)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """All in one folder moved to another, or nothing; the card last, as it vouches for the others."""
    moved = []
    try:
        for path in sorted(source.iterdir(), key=lambda path: path.name == "card.json"):
            moved.append(path.rename(target / path.name))
    except BaseException:
        for path in moved:
            path.rename(source / path.name)
        raise
