"""Implements training on several tasks: the loss of text tokens, metrics per task, and a collator that adds prompts.

The collator draws a random prompt template for each row. The draw depends only on the seed, the epoch and the row.
Therefore the templates change between epochs, and a resumed run uses the same templates as an uninterrupted run.

Here, every answer that is not an item is called a text, even the semantic ID of a user.

Legend: B rows, T tokens of the longest row, N target tokens, V vocabulary, K tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.branches.structure import IGNORED
from trl_rec.data.tasks.templates import TASK_NAMES, TASKS, TemplateIds
from trl_rec.losses.bear import bear_loss
from trl_rec.losses.output import LossOutput
from trl_rec.trainer.base.metrics import Mean
from trl_rec.trainer.base.sampling import EpochCounter
from trl_rec.trainer.bear.collator import NextItemCollator


@dataclass
class TaskCollator(EpochCounter, NextItemCollator):
    """A [`NextItemCollator`] that prepends a prompt to each row of [`build_task_rows`] that contains only an answer.

    Rows that already contain their prompts get no further prompt. These are the rows of the task `next_item`, and rows
    without a task, such as evaluation rows.

    Args:
        templates (`Mapping[str, list[TemplateIds]]`): The prompt templates of each task, from [`template_ids`].
        seed (`int`, *optional*, defaults to `0`): Seed for drawing templates.
    """

    templates: Mapping[str, list[TemplateIds]] = field(default_factory=dict)
    seed: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch of [`NextItemCollator`], with the task index of each row in `tasks`, `(B,)`."""
        if "task" not in rows[0]:
            return super().__call__(rows)
        batch = super().__call__([self._with_prompt(row) for row in rows])
        return {**batch, "tasks": torch.tensor([TASK_NAMES.index(row["task"]) for row in rows])}

    def _with_prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        """Prepends one of the prompts of the task to a row. The tokens of the prompt are not labels.

        A row whose task has no templates is returned unchanged.
        """
        templates = self.templates[row["task"]]
        if not templates:
            return row
        chosen = np.random.default_rng([self.seed, int(self.epoch), row["row"]]).integers(len(templates))
        prompt = templates[chosen].fill(row["slots"]).tolist()
        before = {"input_ids": prompt, "labels": [IGNORED] * len(prompt), "trie_nodes": [-1] * len(prompt)}
        return {**row, **{name: [*before[name], *row[name]] for name in before if name in row}}


def free_rows(rows: Dataset) -> np.ndarray | None:
    """Returns a mask `(num_rows,)` of the rows whose answer is not an item, or None if the rows have no tasks."""
    if "task" not in rows.column_names:
        return None
    return np.array([TASKS[name].answer != "item" for name in rows["task"]], bool)


def answers_item(tasks: Tensor) -> Tensor:
    """Returns whether the answer to each row's task is an item, `(B,)`. `tasks`, `(B,)`, are task indices."""
    return _answers_item(tasks.device)[tasks]


@cache
def _answers_item(device: torch.device) -> Tensor:
    return torch.tensor([task.answer == "item" for task in TASKS.values()], device=device)  # (K,)


def with_texts(
    logits: Tensor, targets: Tensor, is_item: Tensor, item_loss: Callable[[Tensor, Tensor, Tensor], LossOutput]
) -> LossOutput:
    """Computes the loss, `(N,)`, of target tokens that belong to items or to texts.

    For tokens of texts, the loss is cross-entropy over the vocabulary, and the metrics `margin` and `pruned` are 0.

    Args:
        logits: The logits over the vocabulary, `(N, V)`.
        targets: The target tokens, `(N,)`.
        is_item: Whether each target token belongs to an item, `(N,)`.
        item_loss: Computes the loss of item tokens from their logits, their targets and their indices among the N
            tokens.
    """
    # 1. Compute the two kinds of losses. Item tokens are put first, so that only their number is copied to the host.
    order = torch.argsort(~is_item, stable=True)
    num_items = int(is_item.sum())
    of_items = order[:num_items]
    of_texts = order[num_items:]
    items = item_loss(logits[of_items], targets[of_items], of_items)
    texts = bear_loss(logits[of_texts], targets[of_texts], None, num_beams=1, weight=0.0, sharpness=1.0)

    def merged(of_items: Tensor, of_texts: Tensor) -> Tensor:
        """Merges the values of item tokens and of text tokens into one value per target, `(N,)`."""
        values = torch.cat([of_items, of_texts.to(of_items.dtype)])
        return torch.zeros_like(values).index_copy(0, order, values)

    # 2. Merge the losses and the metrics.
    no_value = torch.zeros_like(texts.loss)
    metrics = {
        "ce": merged(items.metrics["ce"], texts.metrics["ce"]),
        "margin": merged(items.metrics["margin"], no_value),
        "pruned": merged(items.metrics["pruned"], no_value),
    }
    return LossOutput(merged(items.loss, texts.loss), metrics)


def task_means(ce: Tensor, tasks: Tensor) -> dict[str, Mean]:
    """Averages the cross-entropy `ce`, `(N,)`, over the target tokens of each task, as metrics `task/<name>/ce`.

    `tasks`, `(N,)`, contains the task index of each target token.
    """
    totals = torch.zeros(len(TASK_NAMES), device=ce.device).index_add(0, tasks, ce.float())
    counts = torch.zeros(len(TASK_NAMES), device=ce.device).index_add(
        0, tasks, torch.ones_like(ce, dtype=torch.float32)
    )
    return {f"task/{name}/ce": Mean(totals[number], counts[number]) for number, name in enumerate(TASK_NAMES)}
