"""What training on several tasks adds: a collator that writes prompts, the loss of texts, and metrics per task.

A row's template is drawn in the collator, by (seed, epoch, row): a new epoch asks in other words, and a resumed run in
the same words as an uninterrupted one.

Legend: B rows, T tokens, N target tokens, K tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.rows import IGNORED
from trl_rec.data.tasks.templates import TASK_NAMES, TASKS, TemplateIds
from trl_rec.losses.bear import bear_loss
from trl_rec.losses.output import LossOutput
from trl_rec.trainer.base.metrics import Mean
from trl_rec.trainer.base.sampling import EpochCounter
from trl_rec.trainer.bear.collator import NextItemCollator


ANSWERS_ITEM = torch.tensor([task.answer == "item" for task in TASKS.values()])  # (K,)


@dataclass
class TaskCollator(EpochCounter, NextItemCollator):
    """A [`NextItemCollator`] that first writes a prompt before the answer of each row of [`build_task_rows`].

    Rows that name no task, such as those of an evaluation, already have their prompts.

    Args:
        templates (`Mapping[str, list[TemplateIds]]`): The prompts of each task, as [`template_ids`] makes them.
        seed (`int`, *optional*, defaults to `0`): Seed of the choice among templates.
    """

    templates: Mapping[str, list[TemplateIds]] = field(default_factory=dict)
    seed: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The parent's batch, and `tasks (B,)`: the number of each row's task."""
        if "task" not in rows[0]:
            return super().__call__(rows)
        batch = super().__call__([self._with_prompt(row) for row in rows])
        return {**batch, "tasks": torch.tensor([TASK_NAMES.index(row["task"]) for row in rows])}

    def _with_prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with one of its task's prompts, whose tokens are no labels."""
        templates = self.templates[row["task"]]
        if not templates:
            return row
        chosen = np.random.default_rng([self.seed, int(self.epoch), row["row"]]).integers(len(templates))
        prompt = templates[chosen].fill(row["slots"]).tolist()
        before = {"input_ids": prompt, "labels": [IGNORED] * len(prompt), "trie_nodes": [-1] * len(prompt)}
        return {name: [*before[name], *row[name]] for name in before if name in row}


def free_rows(rows: Dataset) -> np.ndarray | None:
    """`(num_rows,)`: whether each row answers with something other than items; None if rows name no task."""
    if "task" not in rows.column_names:
        return None
    return np.array([TASKS[name].answer != "item" for name in rows["task"]], bool)


def item_places(learned: Tensor, tasks: Tensor | None) -> Tensor:
    """The places among `learned (B, T)` whose target is a token of an item. Without `tasks (B,)`, as [`TaskCollator`]
    returns them, all are."""
    return learned if tasks is None else learned & ANSWERS_ITEM.to(tasks.device)[tasks].unsqueeze(1)


def with_texts(
    logits: Tensor, targets: Tensor, is_item: Tensor, item_loss: Callable[[Tensor, Tensor], LossOutput]
) -> LossOutput:
    """The loss `(N,)` of target tokens of items and of texts. For tokens of texts this is cross-entropy over the
    vocabulary, and the metrics `margin` and `pruned` are 0.

    Args:
        logits: `(N, V)`.
        targets: `(N,)`.
        is_item: `(N,)`, boolean.
        item_loss: Computes the loss of item tokens from their logits and targets.
    """
    items = item_loss(logits[is_item], targets[is_item])
    texts = bear_loss(logits[~is_item], targets[~is_item], None, num_beams=1, weight=0.0, sharpness=1.0)

    def merged(of_items: Tensor, of_texts: Tensor) -> Tensor:
        """One value per target, `(N,)`, from those of the item tokens and those of the text tokens."""
        whole = of_items.new_zeros(is_item.shape).masked_scatter(is_item, of_items)
        return whole.masked_scatter(~is_item, of_texts.to(of_items.dtype))

    no_value = torch.zeros_like(texts.loss)
    metrics = {
        "ce": merged(items.metrics["ce"], texts.metrics["ce"]),
        "margin": merged(items.metrics["margin"], no_value),
        "pruned": merged(items.metrics["pruned"], no_value),
    }
    return LossOutput(merged(items.loss, texts.loss), metrics)


def task_means(ce: Tensor, tasks: Tensor) -> dict[str, Mean]:
    """`task/<name>/ce`: the mean cross-entropy `ce (N,)` of the target tokens of each task, given in `tasks (N,)`."""
    totals = torch.zeros(len(TASK_NAMES), device=ce.device).index_add(0, tasks, ce.float())
    counts = torch.zeros(len(TASK_NAMES), device=ce.device).index_add(
        0, tasks, torch.ones_like(ce, dtype=torch.float32)
    )
    return {f"task/{name}/ce": Mean(totals[number], counts[number]) for number, name in enumerate(TASK_NAMES)}
