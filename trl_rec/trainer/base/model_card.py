"""The model card of a run: which method trained what, on which catalogue, with which settings and results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_rec.compat import BACKPORTED_FIELDS, name_or_path
from trl_rec.files import write_text
from trl_rec.items import ItemCatalog


if TYPE_CHECKING:
    from trl_rec.trainer.base.trainer import RecTrainerMixin

# Fields of TrainingArguments that tell two runs of one method apart.
RUN_SETTINGS = ("learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "seed")


def write_model_card(trainer: RecTrainerMixin, model_name: str) -> None:
    """Writes `README.md` into the trainer's output folder."""
    # 1. What the card says: the settings of this package, and the newest metrics that were logged.
    settings = {name: getattr(trainer.args, name) for name in _shown_fields(trainer.args)}
    measured = [entry for entry in trainer.state.log_history if any("@" in name for name in entry)]
    base = name_or_path(trainer.model) or "trained from random weights"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("trl", "transformers", "torch"))
    paper = trainer.paper

    # 2. Front matter, what was trained, how to use it, settings, metrics.
    lines = [
        "---",
        "library_name: trl-rec",
        f"tags: {json.dumps(trainer._tag_names)}",
        "---",
        "",
        f"# {model_name}",
        "",
        f"Trained with {trainer.display_name}. Base model: {base}. Versions: {versions}.",
        "",
        f"The method is from [{paper.title}](https://arxiv.org/abs/{paper.arxiv}).",
        "",
        *([] if trainer.catalog is None else _catalog_lines(trainer.catalog, trainer.card_example())),
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in settings.items()),
        "",
        *(_metric_lines(measured[-1]) if measured else []),
    ]

    write_text(Path(str(trainer.args.output_dir)) / "README.md", "\n".join(lines) + "\n")


def _catalog_lines(catalog: ItemCatalog, example: Sequence[str]) -> list[str]:
    return [
        f"It recommends {len(catalog):,} items written as `{catalog.surface}` (catalogue {catalog.fingerprint}):",
        "",
        "```python",
        *example,
        "```",
        "",
    ]


def _shown_fields(args: object) -> list[str]:
    """The fields that this package's configs add to TRL's, and `RUN_SETTINGS`."""
    configs = [kind for kind in type(args).__mro__ if kind.__module__.startswith("trl_rec.")]
    ours = {name for config in configs for name in config.__annotations__}
    return sorted(ours.difference(BACKPORTED_FIELDS).union(RUN_SETTINGS))


def _metric_lines(entry: dict[str, Any]) -> list[str]:
    rows = [f"| {name} | {value:.4f} |" for name, value in entry.items() if "@" in name]
    return [f"Measured at step {entry.get('step')}:", "", "| metric | value |", "|---|---|", *rows]
