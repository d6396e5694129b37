"""Writes the model card of a run, which lists its method, base model, catalogue, settings and results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from trl_rec.compat import BACKPORTED_FIELDS
from trl_rec.files import write_text
from trl_rec.items import ItemCatalog
from trl_rec.printing import printable


# Fields of TrainingArguments that a card lists besides the fields of our configs.
RUN_SETTINGS = ("learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "seed")
NOT_SHOWN = ("overwrite",)  # does not affect the model


class Paper(NamedTuple):
    """The paper that a method comes from.

    Args:
        title (`str`): Title of the paper.
        arxiv (`str`): The arXiv id of the paper.
    """

    title: str
    arxiv: str


class ModelCard(NamedTuple):
    """The contents of a model card.

    Args:
        name (`str`): Name of the model.
        tags (`Sequence[str]`): Tags for the hub.
        method (`str`): Name of the method as shown in tables.
        paper (`Paper`): The paper that the method comes from.
        base_model (`str` or `None`): Name of the model that training started from. Empty or None if
            training started from random weights.
        settings (`Mapping[str, Any]`): Settings to list.
        log (`Sequence[dict[str, Any]]`): Log entries of the run. The newest entry with ranking metrics is shown.
        catalog (`ItemCatalog`, *optional*): The items.
        example (`Sequence[str]`, *optional*): Lines of Python that show how to use the model.
    """

    name: str
    tags: Sequence[str]
    method: str
    paper: Paper
    base_model: str | None
    settings: Mapping[str, Any]
    log: Sequence[dict[str, Any]]
    catalog: ItemCatalog | None = None
    example: Sequence[str] = ()


def write_model_card(folder: Path, card: ModelCard) -> None:
    """Writes the card to `README.md` in a folder."""
    measured = [entry for entry in card.log if any("@" in name for name in entry)]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("trl", "transformers", "torch"))

    # The front matter, what was trained, how to use it, the settings and the metrics.
    lines = [
        "---",
        "library_name: trl-rec",
        f"tags: {json.dumps(list(card.tags))}",
        "---",
        "",
        f"# {card.name}",
        "",
        f"Trained with {card.method}. Base model: {card.base_model or 'none, random initial weights'}. "
        f"Versions: {versions}.",
        "",
        f"The method is from [{card.paper.title}](https://arxiv.org/abs/{card.paper.arxiv}).",
        "",
        *([] if card.catalog is None else _catalog_lines(card.catalog, card.example)),
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in card.settings.items()),
        "",
        *(_metric_lines(measured[-1]) if measured else []),
    ]
    # Names and settings may contain characters that cannot be printed.
    write_text(folder / "README.md", "\n".join(map(printable, lines)) + "\n")


def shown_settings(args: object) -> dict[str, Any]:
    """Returns the values of `RUN_SETTINGS` and of the fields that this package's configs add to TRL's configs."""
    configs = [kind for kind in type(args).__mro__ if kind.__module__.startswith("trl_rec.")]
    ours = {name for config in configs for name in config.__annotations__ if name in vars(args)}
    names = sorted(ours.difference(BACKPORTED_FIELDS, NOT_SHOWN).union(RUN_SETTINGS))
    return {name: getattr(args, name) for name in names}


def _cell(value: object) -> str:
    """Returns a value as a table cell, with `|` escaped because it separates columns."""
    return str(value).replace("|", "\\|")


def _catalog_lines(catalog: ItemCatalog, example: Sequence[str]) -> list[str]:
    return [
        f"The catalogue {catalog.fingerprint} contains {len(catalog):,} items, written as `{catalog.surface}`.",
        "To use the model:",
        "",
        "```python",
        *example,
        "```",
        "",
    ]


def _metric_lines(entry: dict[str, Any]) -> list[str]:
    rows = [f"| {name} | {value:.4f} |" for name, value in entry.items() if "@" in name]
    return [f"Measured at step {entry.get('step')}:", "", "| metric | value |", "|---|---|", *rows]
