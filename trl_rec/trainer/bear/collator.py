"""Collates next-item rows and list rows (whose completion is a list of items) into batches.

Given a trie, batches contain the trie node before each target token. Labels that are not part of an item, such as the
tokens of a text, have the node `FREE`, at which the whole vocabulary is legal.

Legend: B rows (or sequences, in `_nodes`), T columns (at least as many as the longest row or sequence has tokens).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.branches.structure import COLUMNS, IGNORED, Branches
from trl_rec.data.dataset import split_rows
from trl_rec.items.trie import TokenTrie
from trl_rec.items.twins import Twins
from trl_rec.ragged import Ragged
from trl_rec.trainer.bear.list_labels import list_choices


FREE = -2  # "node" of labels outside items; columns without a label have the "node" -1


@dataclass
class NextItemCollator:
    """Pads rows and, given a trie, removes forced tokens from the labels.

    A target token is forced if it is the only legal token. Under the softmax over legal tokens, the loss of a forced
    token is constant. Therefore, the logits of a forced token are not computed, and a forced token does not count as a
    target token.

    Args:
        pad_token_id (`int`): Token id used to pad `input_ids`.
        trie (`TokenTrie`, *optional*): Trie of the catalogue. Without a trie, no tokens are removed.
        exclude_history (`bool`, *optional*, defaults to `True`): Whether items of the history are illegal in lists.
        twins (`Twins`, *optional*): Groups of items with the same title. If the items of the history are illegal, so
            are all items of their groups.
        padding_side (`str`, *optional*, defaults to `"left"`): `"left"` or `"right"`.
        pad_to_multiple_of (`int`, *optional*): Pads the length to a multiple of this number.
        age_decay (`float`, *optional*, defaults to `1.0`): The weight of a target is `age_decay ** a`, where `a` is
            the number of newer targets in its row. Only rows with the field `trie_nodes` get weights. List rows lack
            this field.
    """

    pad_token_id: int
    trie: TokenTrie | None = None
    exclude_history: bool = True
    twins: Twins | None = None
    padding_side: str = "left"
    pad_to_multiple_of: int | None = None
    age_decay: float = 1.0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Makes a batch from rows.

        The batch contains `input_ids`, `attention_mask`, `position_ids`, `labels` and, given a trie, `trie_nodes`,
        `(B, T)` each. Given a trie, batches of list rows also contain the other entries of [`list_choices`].

        If `age_decay` is not 1 and the rows have `trie_nodes`, the batch also contains `target_weights`, `(B, T)`: the
        weight of each label, or 0 where there is no label.

        If the rows have branches (targets that are written after a common history, see [`Branches`]), the batch also
        contains the column numbers `seen` and `starts`, `(B, T)` each. A column attends to the columns before `seen`,
        and to the columns from `starts` to itself.
        """
        # 1. Pad the rows.
        tokens = Ragged.from_lists([row["input_ids"] for row in rows])
        mask = self._pad(Ragged(np.ones_like(tokens.values), tokens.offsets), 0)
        batch = {
            "input_ids": self._pad(tokens, self.pad_token_id),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "labels": self._pad(Ragged.from_lists([row["labels"] for row in rows]), IGNORED),
        }

        # 2. Add the entries that depend on the rows and on the options.
        branches = branches_of(rows)
        if branches is not None:
            self._add_branches(batch, branches)
        if self.trie is not None:
            self._add_choices(batch, rows, self.trie)
        if self.age_decay != 1 and "trie_nodes" in rows[0]:  # list rows lack this field
            batch["target_weights"] = self._weights(rows).masked_fill(batch["labels"] == IGNORED, 0.0)
        return batch

    def _add_branches(self, batch: dict[str, Tensor], branches: Branches) -> None:
        """Adds `seen` and `starts` to a batch, and replaces `position_ids`.

        The positions of a branch continue from the items before its target.
        """
        # 1. Pad `seen` and `starts`, and compute the positions from them.
        offsets = np.concatenate([[0], np.cumsum(branches.row_lengths)])
        seen, starts = (self._pad(Ragged(values, offsets), 0) for values in branches.columns())
        real = batch["attention_mask"].bool()
        column = torch.arange(real.shape[1])
        first = real.long().argmax(1, keepdim=True)  # (B, 1): the number of columns of padding on the left
        batch["position_ids"] = torch.where(real, seen + column - first - starts, 0)

        # 2. Number the columns from the left edge of the batch, padding included. Padding attends only to itself.
        batch["seen"] = torch.where(real, seen + first, 0)
        batch["starts"] = torch.where(real, starts + first, column)

    def _add_choices(self, batch: dict[str, Tensor], rows: list[dict[str, Any]], trie: TokenTrie) -> None:
        """Adds `trie_nodes` and, for list rows, the other entries of [`list_choices`]. Removes forced labels."""
        if "items" in rows[0]:
            batch.update(list_choices(rows, batch["labels"], trie, self.exclude_history, self.twins))
            batch["labels"] = batch["labels"].masked_fill(batch["trie_nodes"] < 0, IGNORED)
        else:
            nodes = self._pad(Ragged.from_lists([row["trie_nodes"] for row in rows]), -1)
            widths = trie.row_offsets[nodes + 1] - trie.row_offsets[nodes]  # arbitrary at -1 and at FREE
            # At a node with one child, the token is forced. Where the node is -1, there is no label.
            forced = ((nodes < 0) | (widths == 1)) & (nodes != FREE)
            batch["labels"] = batch["labels"].masked_fill(forced, IGNORED)
            batch["trie_nodes"] = nodes.masked_fill(forced, -1)

    def _weights(self, rows: list[dict[str, Any]]) -> Tensor:
        """Returns `age_decay ** a`, `(B, T)`, where `a` is the number of targets that begin after each column.

        For all labels of a branch, `a` is the number of targets that begin after the first label of the branch.
        """
        nodes = Ragged.from_lists([row["trie_nodes"] for row in rows])
        begins = (self._pad(nodes, -1) == 0).long()  # 1 where a target begins, at the root of the trie
        ages = begins.flip(1).cumsum(1).flip(1) - begins

        # Targets of other branches may begin between the labels of a branch. Give all labels of the branch the age of
        # its first label.
        branches = branches_of(rows)
        if branches is not None:
            owners = self._pad(Ragged(branches.of_labels(), nodes.offsets), -1)
            in_branch = owners >= 0
            first_ages = torch.zeros(len(branches.lengths.values), dtype=ages.dtype)
            is_first = in_branch & (begins > 0)
            first_ages[owners[is_first]] = ages[is_first]
            ages = torch.where(in_branch, first_ages[owners.clamp(min=0)], ages) if len(first_ages) else ages
        return torch.pow(torch.tensor(self.age_decay), ages)

    def _pad(self, rows: Ragged, fill: int) -> Tensor:
        """Returns the rows padded to the same length, `(B, T)`."""
        width = int(rows.lengths.max())
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        return torch.from_numpy(rows.padded(fill=fill, width=width, left=self.padding_side == "left"))


def branches_of(rows: list[dict[str, Any]]) -> Branches | None:
    """Returns the branches of the rows of a batch, or None if rows of this kind have no branches."""
    if not set(COLUMNS) <= rows[0].keys():
        return None
    lengths = np.array([len(row["input_ids"]) for row in rows])
    return Branches(lengths, *(Ragged.from_lists([row[name] for row in rows]) for name in COLUMNS))


def with_trie_nodes(rows: Dataset, trie: TokenTrie, free: np.ndarray | None = None) -> Dataset:
    """Adds the field `trie_nodes` to rows: the trie node before each label, or -1 where there is no label.

    The labels of a branch must be the beginning of an item's path (its token ids). The other labels of a row must be
    concatenated paths of items. If a label does not continue the path of any item, raises a `ValueError` that names
    the row.

    Args:
        rows: Rows with `labels`.
        trie: Trie of the catalogue.
        free: `(num_rows,)`, True for rows whose labels are not items. The labels of these rows get the node `FREE`.
    """
    # 1. Mark the labels that are not items.
    labels = split_rows(rows, "labels")
    trie = trie.to("cpu")
    nodes = np.full(len(labels.values), -1, np.int32)
    learned = labels.values != IGNORED
    if free is not None:
        is_free = free[labels.row_ids]
        nodes[learned & is_free] = FREE
        learned &= ~is_free

    # 2. Find the sequence of each remaining label: a branch, or the part of a row outside its branches.
    sequences = labels.row_ids[learned]
    row_of_sequence = np.arange(len(labels))
    if set(COLUMNS) <= set(rows.column_names):
        branches = Branches(labels.lengths, *(split_rows(rows, name) for name in COLUMNS))
        owners = branches.of_labels()[learned]
        sequences = np.where(owners < 0, sequences, len(labels) + owners)
        row_of_sequence = np.concatenate([row_of_sequence, branches.lengths.row_ids])

    # 3. Collect the labels of each sequence, and find their nodes. In a row, labels of several branches may alternate.
    order = np.argsort(sequences, kind="stable")
    counts = np.bincount(sequences, minlength=len(row_of_sequence))
    targets = Ragged.from_lengths(labels.values[learned][order], counts)
    found = np.empty(len(order), nodes.dtype)
    found[order] = _nodes(targets, trie, row_of_sequence)
    nodes[learned] = found
    return rows.add_column("trie_nodes", Ragged(nodes, labels.offsets).to_arrow())


def _nodes(targets: Ragged, trie: TokenTrie, row_of_sequence: np.ndarray) -> np.ndarray:
    """Returns the node before each target token of each sequence, `(number of target tokens,)`.

    All sequences are walked in parallel. After a leaf, the walk returns to the root.
    """
    tokens = torch.from_numpy(targets.padded(width=max(1, int(targets.lengths.max(initial=0)))))  # (B, T)
    node = torch.zeros(len(tokens), dtype=torch.int64)  # (B,)
    passed: list[Tensor] = []
    for column in tokens.unbind(1):
        passed.append(node)
        reached = trie.advance(node, column)

        # Padding (-1) leads to no node. Any other token that leads to no node is an error.
        strayed = (reached < 0) & (column >= 0)
        if bool(strayed.any()):
            sequence = int(strayed.nonzero()[0])
            raise ValueError(
                f"row {row_of_sequence[sequence]}: label {int(column[sequence])} does not continue the path of any "
                "item; build the rows with this catalogue"
            )

        leaf = trie.row_offsets[reached] == trie.row_offsets[reached + 1]
        node = torch.where(leaf | (reached < 0), 0, reached)
    return torch.stack(passed, 1)[tokens >= 0].numpy()
