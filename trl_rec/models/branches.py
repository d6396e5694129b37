"""Prepares batches of rows with branches for a forward pass.

A row with branches consists of a trunk, followed by one branch per target. The trunk is the head of the prompt,
followed by a history. A branch is the tail of the prompt, followed by one target. Each branch continues a prefix of
the trunk (see `trl_rec/data/branches`). A branch attends to its prefix and to itself, and its position ids continue
those of its prefix. The logits are therefore the same as with one row per target, up to rounding. The mask is computed
from the columns of the tokens (their places in the row), not from their position ids, because later items of the
history can have lower position ids than the branches of earlier targets.

A model that cannot read such rows, for example because it does not accept a custom mask, gets one row per branch.
The choice is made before the forward pass, and its reason is logged once. In a mixture of experts, every column that
the model reads counts once in the load-balancing loss, so separate rows count their common prefix several times.

Legend: B rows, T columns, N columns that predict a label, R separate rows, W columns of the longest separate row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trl_rec.data.branches.structure import IGNORED
from trl_rec.models.attention import check_suitable, mask_for, warn_once, why_separate


if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Entries of a batch with one value per column, besides the mask and the entries in `LABELS`.
COLUMNS = ("input_ids", "position_ids")
# Entries of a batch that have a meaning only at columns with a label, and their values at all other columns. The value
# at a column belongs to the prediction that the previous column makes.
LABELS = {"labels": IGNORED, "trie_nodes": -1, "target_weights": 0}


class Prepared(NamedTuple):
    """A batch that a model can read.

    Args:
        inputs (`dict[str, torch.Tensor]`): The batch without `seen` and `starts` (see [`prepare_branches`]). It
            consists of separate rows if `owners` is not None.
        mask (`torch.Tensor`, *optional*): The attention mask of the rows with branches, in the model's format. None
            if the `attention_mask` of the batch is enough.
        owners (`torch.Tensor` of shape `(R,)`, *optional*): The original row of each separate row. None if the rows
            are the original rows.
    """

    inputs: dict[str, Tensor]
    mask: Tensor | None
    owners: Tensor | None


def prepare_branches(model: PreTrainedModel, inputs: dict[str, Tensor], max_length: int | None = None) -> Prepared:
    """Prepares a batch for a model: with a mask, or with separate rows.

    Args:
        model: The model itself, not the wrapper of a distributed engine.
        inputs: `input_ids`, `attention_mask`, `position_ids` and `labels`, `(B, T)` each. If the rows have branches,
            also `seen` and `starts`, `(B, T)` each: a column attends to the columns before its `seen`, and to the
            columns from its `starts` up to and including itself. Without `seen` and `starts`, the batch is returned
            unchanged. Other entries in `LABELS` have the shape `(B, T)`. All further entries have one value per row.
        max_length (*optional*): An upper bound on the number of tokens of a prefix and its branch together.
    """
    inputs = dict(inputs)
    if "seen" not in inputs:
        return Prepared(inputs, None, None)

    # 1. Decide whether the model can read the rows as they are.
    check_suitable(model)
    width = inputs["input_ids"].shape[1]
    reason = why_separate(model, width if max_length is None else min(width, max_length))
    seen = inputs.pop("seen")
    starts = inputs.pop("starts")
    if reason is None:
        return Prepared(inputs, mask_for(model, visible(seen, starts, inputs["attention_mask"].bool())), None)

    # 2. If the model cannot read the rows, make separate rows.
    warn_once(
        reason,
        "each target is processed in a separate row, which is slower and takes more memory; if memory runs out, lower "
        "max_row_tokens",
    )
    separate, owners = _separate(inputs, seen, starts)
    return Prepared(separate, None, owners)


def visible(seen: Tensor, starts: Tensor, real: Tensor) -> Tensor:
    """Returns a mask `(B, T, T)` that is True at `[:, q, t]` if column `q` attends to column `t`.

    Padding attends to itself, so that no softmax is empty.
    """
    column = torch.arange(real.shape[1], device=real.device)
    in_prefix = column < seen.unsqueeze(2)
    in_branch = (starts.unsqueeze(2) <= column) & (column <= column.unsqueeze(1))
    return ((in_prefix | in_branch) & real.unsqueeze(1)) | (column == column.unsqueeze(1))


def _separate(inputs: dict[str, Tensor], seen: Tensor, starts: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the batch with one row per branch, and the original row of each new row.

    A trunk that predicts labels itself gets a row too. Branches without labels are dropped.
    """
    # 1. Find the part that each column belongs to: a branch or the trunk. A branch is identified by its first column,
    # the trunk by -1.
    real = inputs["attention_mask"].bool()
    column = torch.arange(real.shape[1], device=real.device)
    parts = torch.where(starts > column, -1, starts)  # (B, T)

    # 2. Find the last column that predicts a label in each part.
    predicts = _of_next(inputs["labels"], IGNORED) != IGNORED
    places = predicts.nonzero()  # (N, 2)
    if not len(places):  # a forward pass needs at least one row
        places = real.long().argmax(1)[:1].unsqueeze(0)  # the first token of the first row
        places = torch.cat([torch.zeros_like(places), places], 1)
    row_and_part = torch.cat([places[:, :1], parts[places[:, 0], places[:, 1]].unsqueeze(1)], 1)  # (N, 2)
    is_last = torch.ones(len(places), dtype=torch.bool, device=places.device)
    is_last[:-1] = (row_and_part[1:] != row_and_part[:-1]).any(1)
    owners, ends = places[is_last].unbind(1)  # (R,)

    # 3. Make one row per part: move its columns, and those of the prefix that it continues, to the left.
    part = parts[owners, ends].unsqueeze(1)
    in_row = column < seen[owners, ends].unsqueeze(1)
    in_row |= (starts[owners, ends].unsqueeze(1) <= column) & (column <= ends.unsqueeze(1))
    in_row &= real[owners]  # (R, T)
    width = int(in_row.sum(1).max())
    order = torch.argsort(~in_row, dim=1, stable=True)[:, :width]  # (R, W)
    kept = in_row.gather(1, order)
    separate = {"attention_mask": kept.to(inputs["attention_mask"].dtype)}
    for name in COLUMNS:
        separate[name] = inputs[name][owners].gather(1, order) * kept

    # 4. Move the labels along with the columns that predict them. Each label is kept only in the row of its own part.
    own = (parts[owners].gather(1, order) == part) & kept
    for name, fill in LABELS.items():
        if name in inputs:
            values = _of_next(inputs[name], fill)[owners].gather(1, order)
            separate[name] = values.masked_fill(~own, fill)
    for name in inputs.keys() - separate.keys():
        separate[name] = inputs[name][owners]

    # 5. Append a column, so that the label that the last column predicts has a place.
    for name in ("attention_mask", *COLUMNS):
        separate[name] = torch.nn.functional.pad(separate[name], (0, 1))
    for name in LABELS.keys() & separate.keys():
        separate[name] = torch.nn.functional.pad(separate[name], (1, 0), value=LABELS[name])
    return separate, owners


def _of_next(values: Tensor, fill: int) -> Tensor:
    """Returns for each column the value of the next column, `(B, T)`. The last column gets the value `fill`."""
    return torch.cat([values[:, 1:], torch.full_like(values[:, :1], fill)], 1)
