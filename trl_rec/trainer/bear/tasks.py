"""Training on several tasks at once: their collator, which labels belong to items, and the metrics of each task.

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
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_rec.data.rows import IGNORED
from trl_rec.data.tasks.templates import TASK_NAMES, TASKS, TemplateIds
from trl_rec.losses.bear import bear_loss
from trl_rec.losses.output import LossOutput
from trl_rec.trainer.base.metrics import Mean
from trl_rec.trainer.bear.collator import NextItemCollator


ANSWERS_ITEM = torch.tensor([task.answer == "item" for task in TASKS.values()])  # (K,)


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

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Comes before the epoch's first batch is made; a run that is resumed begins within an epoch."""
        self.epoch.fill_(int(state.epoch or 0))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """What the parent gives, and `tasks (B,)`: the number of each row's task."""
        if "task" not in rows[0]:
            return super().__call__(rows)
        batch = super().__call__([self._written(row) for row in rows])
        return {**batch, "tasks": torch.tensor([TASK_NAMES.index(row["task"]) for row in rows])}

    def _written(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its prompt."""
        templates = self.templates[row["task"]]
        if not templates:
            return row
        chosen = np.random.default_rng([self.seed, int(self.epoch), row["row"]]).integers(len(templates))
        prompt = templates[chosen].fill(row["slots"]).tolist()
        before = {"input_ids": prompt, "labels": [IGNORED] * len(prompt), "trie_nodes": [-1] * len(prompt)}
        return {name: [*before[name], *row[name]] for name in before if name in row}


def free_rows(rows: Dataset) -> np.ndarray | None:
    """`(num_rows,)`: whether each row learns something else than items; None where rows name no task."""
    if "task" not in rows.column_names:
        return None
    return np.array([TASKS[name].answer != "item" for name in rows["task"]], bool)


def item_places(learned: Tensor, tasks: Tensor | None) -> Tensor:
    """`(B, T)`: those of the `learned` places whose target is an item's token; `tasks (B,)` as [`TaskCollator`] gives
    them."""
    return learned if tasks is None else learned & ANSWERS_ITEM.to(tasks.device)[tasks].unsqueeze(1)


def with_texts(
    logits: Tensor, targets: Tensor, is_item: Tensor, of_items: Callable[[Tensor, Tensor], LossOutput]
) -> LossOutput:
    """The loss `(N,)` of target tokens from their logits `(N, V)`: `of_items` of items', cross-entropy over the
    vocabulary of the others, which have margin and pruned 0."""
    texts = bear_loss(logits[~is_item], targets[~is_item], None, num_beams=1, weight=0.0, sharpness=1.0)
    items = of_items(logits[is_item], targets[is_item])

    def placed(own: Tensor, other: Tensor) -> Tensor:
        whole = own.new_zeros(is_item.shape).masked_scatter(is_item, own)
        return whole.masked_scatter(~is_item, other.to(own.dtype))

    metrics = {name: placed(items.metrics[name], 0 * texts.metrics[name]) for name in ("margin", "pruned")}
    return LossOutput(
        placed(items.loss, texts.loss), {"ce": placed(items.metrics["ce"], texts.metrics["ce"]), **metrics}
    )


def task_means(ce: Tensor, tasks: Tensor) -> dict[str, Mean]:
    """`task/<name>/ce`: the mean cross-entropy `ce (N,)` of the target tokens of each task, given in `tasks (N,)`."""
    totals = torch.zeros(len(TASK_NAMES), device=ce.device).index_add(0, tasks, ce.float())
    counts = torch.zeros(len(TASK_NAMES), device=ce.device).index_add(
        0, tasks, torch.ones_like(ce, dtype=torch.float32)
    )
    return {f"task/{name}/ce": Mean(totals[number], counts[number]) for number, name in enumerate(TASK_NAMES)}
