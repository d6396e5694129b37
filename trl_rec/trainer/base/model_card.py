"""The model card of a run: what was trained, on what, how, and what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from trl_rec.compat import name_or_path
from trl_rec.items import ItemCatalog


RECOMMENDER = (
    "from trl_rec import Recommender",
    "",
    'recommender = Recommender.from_pretrained("path/to/this/folder")',
    "recommender.recommend(history=[], k=10)",
)


def write_model_card(trainer: Any, model_name: str) -> None:
    """Writes `README.md` into the trainer's output folder."""
    own = {name: getattr(trainer.args, name) for name in sorted(_own_fields(trainer.args))}
    metrics: dict[str, Any] = next(
        (entry for entry in reversed(trainer.state.log_history) if any("@" in key for key in entry)), {}
    )
    base = name_or_path(trainer.model) or "trained from random weights"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("trl", "transformers", "torch"))
    lines = [
        "---",
        "library_name: trl-rec",
        f"tags: {json.dumps(trainer._tag_names)}",
        "---",
        "",
        f"# {model_name}",
        "",
        f"Trained with {trainer._name}. Base model: {base}. Versions: {versions}.",
        "",
        *([] if trainer.catalog is None else _catalog_lines(trainer.catalog, _example(trainer))),
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in own.items()),
        "",
        *_metric_lines(metrics),
    ]
    Path(trainer.args.output_dir).mkdir(parents=True, exist_ok=True)
    (Path(trainer.args.output_dir) / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _catalog_lines(catalog: ItemCatalog, example: Sequence[str]) -> list[str]:
    return [
        f"It recommends {len(catalog):,} items written as `{catalog.surface}` (catalogue {catalog.fingerprint}):",
        "",
        "```python",
        *example,
        "```",
        "",
    ]


def _example(trainer: Any) -> Sequence[str]:
    """Code that asks the policy."""
    names_users = "{user}" in (trainer.args.prompt_head or "")
    asked = "recommender.recommend(history=[], k=10, user=0)  # a row of RecDataset.users"
    return getattr(trainer, "_card_example", (*RECOMMENDER[:-1], asked) if names_users else RECOMMENDER)


def _own_fields(args: Any) -> set[str]:
    """The fields that this package's configs add to TRL's, and the few that tell a run apart."""
    ours = {
        name for kind in type(args).__mro__ if kind.__module__.startswith("trl_rec.") for name in kind.__annotations__
    }
    return ours | {"learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "seed"}


def _metric_lines(entry: dict[str, Any]) -> list[str]:
    metrics = {name: value for name, value in entry.items() if "@" in name}
    if not metrics:
        return []
    rows = (f"| {name} | {value:.4f} |" for name, value in metrics.items())
    return [f"Measured at step {entry.get('step')}:", "", "| metric | value |", "|---|---|", *rows]
