"""Defines `prepare`, which reads, filters and splits a source, and writes the dataset folder atomically."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trl_rec.data.card import make_card
from trl_rec.data.dataset import RecDataset, load, save
from trl_rec.data.log import Options
from trl_rec.data.preparation.existing import check_own, is_made, sha256
from trl_rec.data.preparation.licensing import license_of, record_license
from trl_rec.data.preparation.option_checks import check_options
from trl_rec.data.preparation.settings import row_settings, source_settings, split_settings
from trl_rec.data.preparation.steps import Made, checked_splits, make_catalog, read_and_split
from trl_rec.data.readers import READERS, locate
from trl_rec.files import atomic_folder, clean_up, exclusive, resolved, tidy
from trl_rec.ranges import COUNT_FROM_0, SEED


logger = logging.getLogger(__name__)


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
    timestamp_format: str | None = None,
    event_column: str | None = None,
    event_ratings: Mapping[str, float | None] | None = None,
    empty_ratings: str = "refuse",
    unknown_items: str = "refuse",
    repeats: str | None = None,
    license: str | None = None,
    seed: int = 0,
    toy_users: int = 300,
    toy_items: int = 200,
    overwrite: bool = False,
) -> RecDataset:
    """Makes a dataset folder from an interaction log, and loads it.

    If the folder already exists and was made from the same files with the same settings, it is only loaded, unless
    `overwrite` is set.

    Args:
        source (`str` or `Path`): Folder with the files of the source; `"toy"`, which is generated from the seed;
            `"ml-100k"`, which is downloaded once and cached; or `"hf://datasets/owner/name"`, a dataset on the
            Hugging Face Hub. If your folder is named `toy` or `ml-100k`, pass a `Path`, or write `"./toy"`.
        output_dir (`str` or `Path`): The dataset folder. It is created in one step at the end, so a failure leaves no
            incomplete folder.
        format (`str`, *optional*): `table`, `recbole`, `bigrec`, `lcrec`, `ml-100k` or `toy`; detected from the files
            by default.
        split (`str`, *optional*): `"leave_one_out"` (the default), `"leave_last"` or `"time"`. Sources whose rows are
            windows (a history and its target), such as `bigrec`, are already split and accept only `"windows"`.
        num_held_out (`int`, *optional*): With `"leave_last"`, the number of items per user in the test split, which is
            also the number of items per user in the validation split; 10 by default. Users with fewer than
            `2 * num_held_out + 1` items are used for training only.
        min_user_interactions (`int`, *optional*, defaults to `0`): Users with fewer interactions are dropped,
            repeatedly, until every user and item has enough interactions (k-core).
        min_item_interactions (`int`, *optional*, defaults to `0`): Items with fewer interactions are dropped in the
            same way.
        columns (`Mapping[str, str]`, *optional*): For `table`, maps our column names (`user_id item_id timestamp
            rating title`) to the source's column names.
        title_column (`str`, *optional*): For `recbole`, the item column that contains the title, if it is not `title`,
            `movie_title`, `name` or `item_name`.
        group_column (`str`, *optional*): The item column that contains the groups of each item (genres, brands).
            Fairness and diversity are measured over these groups.
        group_separator (`str`, *optional*, defaults to `"|"`): Separates the groups of an item if they are given
            as text.
        timestamp_format (`str`, *optional*): Format of timestamps that are neither numbers nor ISO 8601, as in
            `datetime.strptime`: `"%d/%m/%Y"` for `28/03/2024`.
        event_column (`str`, *optional*): For `table` and `recbole`, the column of the interactions that contains
            events, such as `view` and `purchase`. The ratings are then taken from `event_ratings`, and a column
            `rating` is ignored.
        event_ratings (`Mapping[str, float | None]`, *optional*): The rating of each event, such as
            `{"view": 2, "cart": 4, "purchase": 5}`. Interactions with an event whose rating is None are dropped.
        empty_ratings (`str`, *optional*, defaults to `"refuse"`): `"drop"` drops interactions without a rating;
            `"refuse"` raises a ValueError.
        unknown_items (`str`, *optional*, defaults to `"refuse"`): `"drop"` drops interactions with items that are not
            in the item table; `"refuse"` raises a ValueError. `"keep"` keeps these interactions out of all splits, and
            stores those of the dataset's users in `RecDataset.unlisted`. They are used only when a model recommends,
            as part of the user's history. A model can read such an item if it was trained on an earlier log that
            contained the item.
        repeats (`str`, *optional*): Which interactions to keep if a user chose an item several times: `"first"`,
            `"last"`, or `"keep"` for all. By default all are kept, but validation and test targets are checked: a
            target that is in the history of its row cannot be recommended with `exclude_history`, which excludes the
            items of the history. If validation or test has such targets, `prepare` logs a warning. If all targets of
            a split are in the histories of their rows, `prepare` raises a ValueError, except for sources of windows.
        license (`str`, *optional*): The licence of the data, such as `"cc-by-4.0"`. It is recorded in the folder, even
            if the folder already exists. When a model is pushed to the hub, its catalogue is pushed only if this
            licence allows redistribution ([`allows_redistribution`]), or if the option `include_catalog` of training
            or of `trl-rec export` is set. The licences of `ml-100k` and `toy` are known, and need not be given.
        seed (`int`, *optional*, defaults to `0`): Seed of the toy log.
        toy_users (`int`, *optional*, defaults to `300`): Number of users of the toy log.
        toy_items (`int`, *optional*, defaults to `200`): Number of items of the toy log.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace an existing dataset folder. A shell
            whose current directory is that folder has to enter it again afterwards (`cd .`).

    Returns:
        [`RecDataset`], as [`load`] returns it.
    """
    # 1. Find the files, and collect the settings that affect the contents of the dataset.
    if not str(output_dir):
        raise ValueError("output_dir is empty; name the dataset folder")
    output_dir = resolved(output_dir)
    format, files = locate(source, format)
    if isinstance(columns, Mapping):
        columns = {our_name: name for our_name, name in columns.items() if our_name != name} or None
    options = Options(
        columns=columns,
        title_column=title_column,
        group_column=group_column,
        group_separator=group_separator,
        timestamp_format=timestamp_format,
        empty_ratings=empty_ratings,
        event_column=event_column,
        event_ratings=event_ratings,
        seed=seed,
        toy_users=toy_users,
        toy_items=toy_items,
    )
    check_options(options, unknown_items, repeats)
    minima = {"min_user_interactions": min_user_interactions, "min_item_interactions": min_item_interactions}
    for name, number in minima.items():
        COUNT_FROM_0.check(name, number)
    SEED.check("seed", seed)
    known_license = license_of(format, license)
    settings = source_settings(format, split_settings(format, split, num_held_out), minima, options)
    settings |= row_settings(format, unknown_items, repeats)
    sources = {path.name: sha256(path) for path in files.values()}
    if is_made(output_dir, settings, sources, overwrite):
        logger.info(
            "%s already exists and was made from the same files with the same settings, so it is not made again",
            output_dir,
        )
        tidy(output_dir)
        record_license(output_dir, license)
        return load(output_dir)
    if output_dir.is_mount():
        raise ValueError(
            f"{output_dir} is a mount point, which cannot be replaced; choose a folder in it, such as "
            f"{output_dir}/data"
        )

    # 2. Make the dataset, unless another process has made it in the meantime. First clean up what a killed process may
    # have left under a temporary name.
    with exclusive(output_dir):
        clean_up(output_dir)
        if not is_made(output_dir, settings, sources, overwrite):
            logger.info("reading %s (%s)", source, format)
            # No variable holds the log and the splits, so they are released before the folder is loaded.
            _write(
                output_dir,
                read_and_split(READERS[format], files, options, settings),
                settings,
                sources,
                overwrite,
                known_license,
            )
        else:
            record_license(output_dir, license)
    return load(output_dir)


def _write(
    output_dir: Path,
    made: Made,
    settings: dict[str, Any],
    sources: dict[str, str],
    overwrite: bool,
    license: str | None,
) -> None:
    """Checks the splits, and writes the dataset folder."""
    # 1. Check the splits, and describe the dataset.
    splits = checked_splits(made.splits, settings["split"])
    catalog = make_catalog(made.log.items, made.group_column, license)
    card = make_card(
        made.log,
        catalog,
        made.splits,
        settings=settings,
        sources=sources,
        dropped=made.dropped,
        cold_users=made.cold_users,
        left_out=made.left_out,
        merged_timestamps=made.merged_timestamps,
        notes=made.notes,
        license=license,
    )
    _report_repeats(card, settings)

    # 2. Write all files to a temporary folder next to the final one, then rename it. The old folder is checked again
    # before it is deleted, because other files may have been added to it since the first check.
    check_old = partial(check_own, name=output_dir) if overwrite else None
    logger.info("writing %s", output_dir)
    with atomic_folder(output_dir, check_old=check_old) as folder:
        save(folder, catalog, made.log.users, made.log.to_table(), splits, card, made.unlisted)


def _report_repeats(card: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Warns about targets that are in the history of their row. Does nothing if `repeats` is set.

    Raises ValueError if all targets of a split are in the history of their row, except in splits of windows.
    """
    repeated = card["repeated_targets"]
    every = [name for name, count in repeated.items() if count and count == card["targets"][name]]
    if "repeats" in settings or not card["repeated_interactions"]:
        return
    remedy = "measure with 'exclude_history: false'"
    if settings["split"] != "windows":
        remedy = "set 'repeats: first' or 'repeats: last'; or set 'repeats: keep', and " + remedy
        if every:
            raise ValueError(
                f"every target of the {every[0]} split is in its user's history, so nothing can be measured if "
                f"recommendations leave out the items of the history; {remedy}"
            )
    if any(repeated.values()):
        logger.warning(
            "%d of %d validation and test targets are in their user's history, and cannot be found if "
            "recommendations leave out the items of the history; to avoid this, %s",
            sum(repeated.values()),
            card["targets"]["validation"] + card["targets"]["test"],
            remedy,
        )
