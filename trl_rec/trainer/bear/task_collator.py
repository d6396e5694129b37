"""Batches of rows of several tasks: each row's template is drawn here, by (seed, epoch, row).

A new epoch asks in other words, and a resumed run in the same as one that was left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from trl_rec.data.rows import IGNORED
from trl_rec.data.task_templates import NAMES, TemplateIds
from trl_rec.trainer.bear.collator import NextItemCollator


@dataclass
class TaskCollator(NextItemCollator, TrainerCallback):
    """Puts prompts before the answers of [`build_task_rows`]' rows, and then does as its parent. Rows that name no
    task, as those of an evaluation, pass as they are. As a callback it learns which epoch begins.

    Args:
        templates (`Mapping[str, list[TemplateIds]]`): Of each task, as [`template_ids`] makes them.
        seed (`int`, *optional*, defaults to `0`): Chooses the templates.
    """

    templates: Mapping[str, list[TemplateIds]] = field(default_factory=dict)
    seed: int = 0
    # Shared with the workers of a data loader, which may outlive an epoch.
    epoch: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64).share_memory_())

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Comes before the epoch's first batch is made; a run that is resumed begins within an epoch."""
        self.epoch.fill_(int(state.epoch))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """What the parent gives, and `tasks (B,)`: the number of each row's task."""
        if "task" not in rows[0]:
            return super().__call__(rows)
        batch = super().__call__([self._written(row) for row in rows])
        return {**batch, "tasks": torch.tensor([NAMES.index(row["task"]) for row in rows])}

    def _written(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its prompt."""
        templates = self.templates[row["task"]]
        if not templates:
            return row
        chosen = np.random.default_rng([self.seed, int(self.epoch), row["row"]]).integers(len(templates))
        prompt = templates[chosen].fill(row["slots"]).tolist()
        before = {"input_ids": prompt, "labels": [IGNORED] * len(prompt), "trie_nodes": [-1] * len(prompt)}
        return {name: [*before[name], *row[name]] for name in before if name in row}
