"""`trl-rec tokenize`: the items of a dataset folder get semantic IDs, and its users where a method gives them some."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path

from trl_rec.data import RecDataset, load
from trl_rec.files import write_text
from trl_rec.scripts.parsing import parse
from trl_rec.semantic_ids import (
    DualIdsConfig,
    code_use_picture,
    describe_ids,
    export_index,
    import_index,
    make_dual_ids,
    make_semantic_ids,
    read_ids_card,
)


SHARED = ("levels", "codes", "collisions", "seed")  # keys of both methods


@dataclass
class TokenizeArguments:
    """Keys of a `tokenize` recipe, besides those of [`DualIdsConfig`]; see [`make_semantic_ids`] for what each
    does."""

    dataset: str = field(metadata={"help": "dataset folder; the IDs go into its catalogue"})
    method: str = field(default="kmeans", metadata={"help": "kmeans: from co-occurrence; dual: from texts and users"})
    width: int = field(default=64, metadata={"help": "kmeans: width of the item vectors"})
    window: int = field(
        default=5, metadata={"help": "kmeans: largest distance of two items that count as near each other"}
    )
    iterations: int = field(default=25, metadata={"help": "kmeans: most rounds a level"})
    import_index: str | None = field(default=None, metadata={"help": "an X.index.json to take the IDs from instead"})
    export_index: str | None = field(
        default=None, metadata={"help": "where to write the IDs as an X.index.json as well"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace IDs that were made otherwise"})


def main(argv: list[str]) -> None:
    """Makes the IDs, prints their card, and draws how often codes are used."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments, dual = parse((TokenizeArguments, DualIdsConfig), argv, "tokenize")
    dataset = _made(load(arguments.dataset), arguments, dual)
    card = read_ids_card(dataset.path)
    if arguments.export_index is not None:
        export_index(dataset.catalog, arguments.export_index)
    print(describe_ids(card))
    if all("counts" in level for level in card["levels"]):  # cards of earlier versions have none
        picture = dataset.path / "semantic_ids.svg"
        write_text(picture, code_use_picture(card))
        print(f"\nhow often each code is used: {picture}")


def _made(dataset: RecDataset, arguments: TokenizeArguments, dual: DualIdsConfig) -> RecDataset:
    if arguments.import_index is not None:
        _check_other(arguments, ("method", "width", "window", "iterations"), "import_index")
        _check_other(dual, tuple(one.name for one in fields(dual)), "import_index")
        return import_index(dataset, Path(arguments.import_index), overwrite=arguments.overwrite)
    own = {name: getattr(arguments, name) for name in ("width", "window", "iterations")}
    if arguments.method == "dual":
        _check_other(arguments, tuple(own), "method='dual'")
        return make_dual_ids(dataset, dual, overwrite=arguments.overwrite)
    if arguments.method != "kmeans":
        raise ValueError(f"unknown method {arguments.method!r}; choose kmeans or dual")
    _check_other(dual, tuple(one.name for one in fields(dual) if one.name not in SHARED), "method='kmeans'")
    shared = {name: getattr(dual, name) for name in SHARED}
    return make_semantic_ids(dataset, **own, **shared, overwrite=arguments.overwrite)


def _check_other(given: TokenizeArguments | DualIdsConfig, names: tuple[str, ...], why: str) -> None:
    """Raises where a key is set that the way chosen does not look at."""
    for one in fields(given):
        if one.name in names and getattr(given, one.name) != one.default:
            raise ValueError(f"{one.name} has no effect with {why}; leave it out")
