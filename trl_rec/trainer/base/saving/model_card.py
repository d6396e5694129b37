"""Writes the model card of a run: a usage example, the method, data, results, settings and citation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from trl_rec.compat import BACKPORTED_FIELDS
from trl_rec.data.card import describe
from trl_rec.files import write_text
from trl_rec.items import ItemCatalog
from trl_rec.items.licenses import allows_redistribution
from trl_rec.printing import printable


# Fields of TrainingArguments that a card lists besides the fields of our configs.
RUN_SETTINGS = ("learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "seed")
NOT_SHOWN = ("overwrite", "include_catalog", "include_prior")  # these do not affect the model
PROJECT = "trl-rec: a TRL plug-in that turns an interaction log and a catalogue into an aligned LLM recommender"


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
        base_model (`str` or `None`): Name of the model that training started from. Empty or None if training started
            from random weights.
        settings (`Mapping[str, Any]`): Settings to list.
        log (`Sequence[dict[str, Any]]`): Log entries of the run. If `results` is not given, the newest entry with
            ranking metrics is shown.
        catalog (`ItemCatalog`, *optional*): The items.
        example (`Sequence[str]`, *optional*): Lines of Python that show how to use the model.
        data (`Mapping[str, Any]`, *optional*): The card of the dataset, `RecDataset.card`.
        results (`str`, *optional*): The table of the final evaluation, with the baselines, followed by lines that
            compare the model with the strongest baseline.
        recipe (`str`, *optional*): The content of `recipe.yaml`.
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
    data: Mapping[str, Any] | None = None
    results: str | None = None
    recipe: str | None = None


def write_model_card(folder: Path, card: ModelCard) -> None:
    """Writes the card to `README.md` in a folder."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("trl-rec", "trl", "transformers", "torch"))
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
        *_use_lines(card.example),
        *_data_lines(card),
        *_result_lines(card),
        *_settings_lines(card),
        *_citation_lines(card.paper),
    ]
    # Names and settings may contain characters that cannot be printed.
    write_text(folder / "README.md", "\n".join(map(printable, lines)) + "\n")


def shown_settings(args: object) -> dict[str, Any]:
    """Returns the values of `RUN_SETTINGS` and of the fields that this package's configs add to TRL's configs.

    The fields in `NOT_SHOWN` are left out.
    """
    configs = [kind for kind in type(args).__mro__ if kind.__module__.startswith("trl_rec.")]
    ours = {name for config in configs for name in config.__annotations__ if name in vars(args)}
    names = sorted(ours.difference(BACKPORTED_FIELDS, NOT_SHOWN).union(RUN_SETTINGS))
    return {name: getattr(args, name) for name in names}


def _use_lines(example: Sequence[str]) -> list[str]:
    """Returns the section with the code that uses the model."""
    return ["## Use", "", "```python", *example, "```", ""] if example else []


def _data_lines(card: ModelCard) -> list[str]:
    """Returns the section about the data: its size, split and licence, and the catalogue."""
    lines: list[str] = []
    if card.data is not None:
        lines += [f"- {line}" for line in describe(card.data).splitlines()]
    if card.catalog is not None:
        catalog = card.catalog
        surface = f"written as `{catalog.surface}`, fingerprint `{catalog.fingerprint}`"
        lines += [f"- catalogue: {len(catalog):,} items, {surface}", f"- {_redistribution(catalog.license)}"]
    return ["## Data", "", *lines, ""] if lines else []


def _redistribution(license: str | None) -> str:
    """Returns a line that says whether the licence of the data allows redistribution of the catalogue."""
    if license is None:
        return "no licence of the data is recorded, so do not redistribute the catalogue before you know the licence"
    if allows_redistribution(license):
        return f"the licence of the data ({license}) allows redistribution of the catalogue"
    return f"the licence of the data ({license}) is not known to allow redistribution of the catalogue"


def _result_lines(card: ModelCard) -> list[str]:
    """Returns the section with the final evaluation, or else with the newest metrics in the log."""
    if card.results is not None:
        return ["## Results", "", "```text", *card.results.splitlines(), "```", ""]
    measured = [entry for entry in card.log if any("@" in name for name in entry)]
    if not measured:
        return []
    entry = measured[-1]
    rows = [f"| {name} | {value:.4f} |" for name, value in entry.items() if "@" in name]
    return [
        "## Results",
        "",
        f"Measured at step {entry.get('step')}:",
        "",
        "| metric | value |",
        "|---|---|",
        *rows,
        "",
    ]


def _settings_lines(card: ModelCard) -> list[str]:
    """Returns the sections with the recipe and with all settings."""
    recipe = [] if card.recipe is None else ["## Recipe", "", "```yaml", *card.recipe.splitlines(), "```", ""]
    rows = [f"| {name} | {_cell(value)} |" for name, value in card.settings.items()]
    return [*recipe, "## Settings", "", "| setting | value |", "|---|---|", *rows, ""]


def _cell(value: object) -> str:
    """Returns a value as a table cell, with `|` escaped because it separates columns."""
    return str(value).replace("|", "\\|")


def _citation_lines(paper: Paper) -> list[str]:
    """Returns the section with the citations of the paper and of this project, in BibTeX."""
    year = f"20{paper.arxiv[:2]}"  # an arXiv id begins with the year and the month
    return [
        "## Citation",
        "",
        "```bibtex",
        f"@misc{{arxiv:{paper.arxiv},",
        f"  title = {{{paper.title}}},",
        f"  year = {{{year}}},",
        f"  eprint = {{{paper.arxiv}}},",
        "  archivePrefix = {arXiv}",
        "}",
        "@software{trl_rec,",
        f"  title = {{{PROJECT}}},",
        f"  version = {{{metadata.version('trl-rec')}}},",
        "  license = {Apache-2.0}",
        "}",
        "```",
    ]
