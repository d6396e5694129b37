"""What is particular to batches of several tasks: which labels are items', and the means of each task.

Legend: B rows, T tokens, N target tokens, K tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.task_templates import NAMES, TASKS
from trl_rec.losses.bear import bear_loss
from trl_rec.losses.output import LossOutput


ANSWERS_ITEM = torch.tensor([task.answer == "item" for task in TASKS.values()])  # (K,)


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


def task_sums(ce: Tensor, tasks: Tensor) -> Tensor:
    """`(2 K,)`: for each task the sum of `ce (N,)` over its target tokens, and then for each their number; `tasks
    (N,)`."""
    sums = torch.zeros(2, len(NAMES), dtype=torch.float32, device=ce.device)
    sums[0].index_add_(0, tasks, ce.to(torch.float32))
    sums[1].index_add_(0, tasks, torch.ones_like(ce, dtype=torch.float32))
    return sums.flatten()


def task_means(sums: Sequence[float]) -> dict[str, float]:
    """`task/<name>/ce` of the tasks that occur, from what `task_sums` gave."""
    found = zip(NAMES, sums[: len(NAMES)], sums[len(NAMES) :], strict=True)
    return {f"task/{name}/ce": total / count for name, total, count in found if count}
