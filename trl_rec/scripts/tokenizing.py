"""`trl-rec tokenize`: assigns semantic IDs to the items of a dataset folder and, with the method `dual`, to its users.

This file is not called tokenize.py, because that name would hide Python's own module `tokenize` from scripts in this
folder that are run with `python PATH`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from trl_rec.data import RecDataset, load
from trl_rec.files import write_text
from trl_rec.printing import printable_lines
from trl_rec.ranges import COUNT
from trl_rec.scripts.options.parsing import parse
from trl_rec.semantic_ids import (
    DualIdsConfig,
    code_use_picture,
    continue_ids,
    describe_ids,
    export_index,
    import_index,
    make_dual_ids,
    make_semantic_ids,
    read_ids_card,
)
from trl_rec.semantic_ids.index_files import check_index_path


KMEANS = ("width", "window", "iterations")  # keys of TokenizeArguments that only the method kmeans uses
SHARED = ("levels", "codes", "collisions", "seed")  # keys of DualIdsConfig that both kmeans and dual use


@dataclass
class TokenizeArguments:
    """Keys of a `tokenize` recipe besides those of [`DualIdsConfig`].

    `width`, `window` and `iterations` are documented in [`make_semantic_ids`].
    """

    dataset: str = field(metadata={"help": "dataset folder; the IDs are written into its catalogue"})
    method: str = field(
        default="kmeans",
        metadata={"help": "kmeans: from co-occurrences; dual: from the texts of items and the behaviour of users"},
    )
    width: Annotated[int, COUNT] = field(
        default=64, metadata={"help": "with method=kmeans: width of the item vectors"}
    )
    window: Annotated[int, COUNT] = field(
        default=5,
        metadata={
            "help": "with method=kmeans: maximum distance, in a user's sequence, of two items that count as "
            "co-occurring",
        },
    )
    iterations: Annotated[int, COUNT] = field(
        default=25, metadata={"help": "with method=kmeans: maximum number of iterations per level"}
    )
    import_index: str | None = field(
        default=None, metadata={"help": "index file (X.index.json) to import the IDs from, instead of making them"}
    )
    known: str | None = field(
        default=None,
        metadata={
            "help": "dataset folder from which the IDs of known items are copied; new items get IDs from the encoder "
            "that method=dual saved in that folder"
        },
    )
    export_index: str | None = field(
        default=None, metadata={"help": "index file (X.index.json) to which the IDs are also exported"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace IDs that were not made with these settings"})


KINDS = (TokenizeArguments, DualIdsConfig)


def main(argv: list[str]) -> None:
    """Makes or imports the IDs, describes them, and draws a chart of how often each code is used."""
    # 1. Make or import the IDs, and export them if requested.
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments, dual = parse(KINDS, argv, "tokenize")
    if arguments.export_index is not None:
        check_index_path(arguments.export_index)

    dataset = _with_ids(load(arguments.dataset), arguments, dual)
    if arguments.export_index is not None:
        export_index(dataset.catalog, arguments.export_index)

    # 2. Describe them, and draw the chart.
    card = read_ids_card(dataset.path)
    assert card is not None, "IDs are never written without their card"
    print(printable_lines(describe_ids(card)))
    if all("counts" in level for level in card["levels"]):  # cards written by earlier versions have no counts
        picture = dataset.path / "semantic_ids.svg"
        write_text(picture, code_use_picture(card))
        print(f"\nthe chart of how often each code is used is in {picture}")


def _with_ids(dataset: RecDataset, arguments: TokenizeArguments, dual: DualIdsConfig) -> RecDataset:
    """Returns the dataset with IDs from the file `import_index`, from the folder `known`, or from the chosen method.

    Raises `ValueError` if a key is set that has no effect on these IDs.
    """
    dual_keys = tuple(one.name for one in fields(dual))

    if arguments.known is not None:
        _check_unset(arguments, ("method", "import_index", *KMEANS), "'known'")
        _check_unset(dual, dual_keys, "'known'")
        return continue_ids(dataset, arguments.known, overwrite=arguments.overwrite)

    if arguments.import_index is not None:
        _check_unset(arguments, ("method", *KMEANS), "'import_index'")
        _check_unset(dual, dual_keys, "'import_index'")
        return import_index(dataset, Path(arguments.import_index), overwrite=arguments.overwrite)

    if arguments.method == "dual":
        _check_unset(arguments, KMEANS, "method='dual'")
        return make_dual_ids(dataset, dual, overwrite=arguments.overwrite)

    if arguments.method == "kmeans":
        _check_unset(dual, tuple(name for name in dual_keys if name not in SHARED), "method='kmeans'")
        own = {name: getattr(arguments, name) for name in KMEANS}
        shared = {name: getattr(dual, name) for name in SHARED}
        return make_semantic_ids(dataset, **own, **shared, overwrite=arguments.overwrite)

    raise ValueError(f"unknown method {arguments.method!r}; choose 'kmeans' or 'dual'")


def _check_unset(given: TokenizeArguments | DualIdsConfig, names: tuple[str, ...], why: str) -> None:
    """Raises `ValueError` unless all keys in `names` have their default values."""
    for one in fields(given):
        if one.name in names and getattr(given, one.name) != one.default:
            raise ValueError(f"{one.name!r} has no effect with {why}; leave it out")
