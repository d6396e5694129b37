"""Collates next-item rows and list rows into batches, with the trie node before each target token.

Labels that are not part of an item, such as the tokens of a text, have the node `FREE`, at which the whole vocabulary
is legal.

Legend: B rows, T tokens of the longest row.
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


FREE = -2


@dataclass
class NextItemCollator:
    """Pads rows and, given a trie, removes forced tokens from the labels.

    A target token is forced if it is the only legal token. Under the softmax over legal tokens, the loss of a forced
    token is constant. So no logits should be computed for this token, and it should not count as a target token.

    Args:
        pad_token_id (`int`): Token id used to pad `input_ids`.
        trie (`TokenTrie`, *optional*): Trie of the catalogue. Without a trie, no tokens are removed.
        exclude_history (`bool`, *optional*, defaults to `True`): Whether items of the history are illegal in lists.
        twins (`Twins`, *optional*): Items with the same title. If one is illegal, so are its twins.
        padding_side (`str`, *optional*, defaults to `"left"`): `"left"` or `"right"`.
        pad_to_multiple_of (`int`, *optional*): Pads the length to a multiple of this number.
        age_decay (`float`, *optional*, defaults to `1.0`): Factor that multiplies the weight of a target once for each
            newer target in its row. The weights are computed from the column `trie_nodes`, even if `trie` is None.
            Rows without this column, such as list rows, get no weights.
    """

    pad_token_id: int
    trie: TokenTrie | None = None
    exclude_history: bool = True
    twins: Twins | None = None
    padding_side: str = "left"
    pad_to_multiple_of: int | None = None
    age_decay: float = 1.0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns a batch with `input_ids`, `attention_mask`, `position_ids`, `labels` and, given a trie,
        `trie_nodes`, `(B, T)` each. Given a trie, batches of list rows also contain the other entries of
        [`list_choices`].

        If `age_decay` is not 1 and the rows have `trie_nodes`, the batch also contains `target_weights`, `(B, T)`: the
        weight of each label, or 0 where there is no label.

        If the rows have branches, the batch also contains `seen` and `starts`, `(B, T)` each. A column attends to the
        columns before `seen`, and to the columns from `starts` to itself (see [`Branches`]).
        """
        tokens = Ragged.from_lists([row["input_ids"] for row in rows])
        mask = self._pad(Ragged(tokens.values * 0 + 1, tokens.offsets), 0)
        batch = {
            "input_ids": self._pad(tokens, self.pad_token_id),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "labels": self._pad(Ragged.from_lists([row["labels"] for row in rows]), IGNORED),
        }
        branches = branches_of(rows)
        if branches is not None:
            self._add_branches(batch, branches)
        if self.trie is not None:
            self._add_choices(batch, rows, self.trie)
        if self.age_decay != 1 and "trie_nodes" in rows[0]:  # list rows lack this column
            batch["target_weights"] = self._weights(rows).masked_fill(batch["labels"] == IGNORED, 0.0)
        return batch

    def _add_branches(self, batch: dict[str, Tensor], branches: Branches) -> None:
        """Adds `seen` and `starts` to a batch. Each column gets the position that it has in a row without branches."""
        # 1. Find the columns and positions in rows without padding.
        offsets = np.concatenate([[0], np.cumsum(branches.row_lengths)])
        seen, starts = (self._pad(Ragged(values, offsets), 0) for values in branches.columns())
        real = batch["attention_mask"].bool()
        column = torch.arange(real.shape[1])
        first = real.long().argmax(1, keepdim=True)  # (B, 1): the number of columns of padding on the left
        batch["position_ids"] = torch.where(real, seen + column - first - starts, 0)

        # 2. Shift the column numbers by the padding on the left. A column of padding attends only to itself.
        batch["seen"] = torch.where(real, seen + first, 0)
        batch["starts"] = torch.where(real, starts + first, column)

    def _add_choices(self, batch: dict[str, Tensor], rows: list[dict[str, Any]], trie: TokenTrie) -> None:
        """Adds the node before each label to a batch, and removes forced tokens from the labels."""
        if "items" in rows[0]:
            batch.update(list_choices(rows, batch["labels"], trie, self.exclude_history, self.twins))
            batch["labels"] = batch["labels"].masked_fill(batch["trie_nodes"] < 0, IGNORED)
        else:
            nodes = self._pad(Ragged.from_lists([row["trie_nodes"] for row in rows]), -1)
            widths = trie.row_offsets[nodes + 1] - trie.row_offsets[nodes]
            # At a node with one child, the token is forced. At -1, there is no label.
            forced = ((nodes < 0) | (widths == 1)) & (nodes != FREE)
            batch["labels"] = batch["labels"].masked_fill(forced, IGNORED)
            batch["trie_nodes"] = nodes.masked_fill(forced, -1)

    def _weights(self, rows: list[dict[str, Any]]) -> Tensor:
        """Returns `age_decay ** a`, `(B, T)`, where `a` is the number of targets that begin after each position."""
        nodes = Ragged.from_lists([row["trie_nodes"] for row in rows])
        begins = (self._pad(nodes, -1) == 0).long()
        ages = begins.flip(1).cumsum(1).flip(1) - begins
        branches = branches_of(rows)
        if branches is not None:
            # A branch has one age, that of its first label, although other targets may begin between its labels.
            owners = self._pad(Ragged(branches.of_labels(), nodes.offsets), -1)
            in_branch = owners >= 0
            first_ages = torch.zeros(len(branches.lengths.values), dtype=ages.dtype)
            is_first = in_branch & (begins > 0)
            first_ages[owners[is_first]] = ages[is_first]
            ages = torch.where(in_branch, first_ages[owners.clamp(min=0)], ages) if len(first_ages) else ages
        return torch.pow(torch.tensor(self.age_decay), ages)

    def _pad(self, rows: Ragged, fill: int) -> Tensor:
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
    """Adds a column `trie_nodes`: the trie node before each label, or -1 where there is no label.

    The labels of a row must be the concatenated paths of items, and the labels of a branch must be the beginning of a
    path. Otherwise, raises a `ValueError` that names the row.

    Args:
        rows: Rows with `labels`.
        trie: Trie of the catalogue.
        free: `(num_rows,)`, True for rows whose labels are not items. The labels of these rows get the node `FREE`.
    """
    labels = split_rows(rows, "labels")
    trie = trie.to("cpu")
    nodes = np.full(len(labels.values), -1, np.int32)
    learned = labels.values != IGNORED
    if free is not None:
        is_free = free[labels.row_ids]
        nodes[learned & is_free] = FREE
        learned &= ~is_free

    # Collect the labels of each text. A text is a branch, or a row without branches. In a row, labels of different
    # branches may alternate.
    texts = labels.row_ids[learned]
    row_of_text = np.arange(len(labels))
    if set(COLUMNS) <= set(rows.column_names):
        branches = Branches(labels.lengths, *(split_rows(rows, name) for name in COLUMNS))
        owners = branches.of_labels()[learned]
        texts = np.where(owners < 0, texts, len(labels) + owners)
        row_of_text = np.concatenate([row_of_text, branches.lengths.row_ids])
    order = np.argsort(texts, kind="stable")
    counts = np.bincount(texts, minlength=len(row_of_text))
    targets = Ragged.from_lengths(labels.values[learned][order], counts)
    found = np.empty(len(order), nodes.dtype)
    found[order] = _nodes(targets, trie, row_of_text)
    nodes[learned] = found
    return rows.add_column("trie_nodes", Ragged(nodes, labels.offsets).to_arrow())


def _nodes(targets: Ragged, trie: TokenTrie, row_of_text: np.ndarray) -> np.ndarray:
    """Returns the node before each target token of each text. All texts are walked in parallel. After a leaf, the walk
    returns to the root."""
    tokens = torch.from_numpy(targets.padded(width=max(1, int(targets.lengths.max(initial=0)))))  # (B, T)
    node = torch.zeros(len(tokens), dtype=torch.int64)  # (B,)
    passed: list[Tensor] = []
    for column in tokens.unbind(1):
        passed.append(node)
        reached = trie.advance(node, column)

        # Padding (-1) leads to no node. Any other token that leads to no node is an error.
        strayed = (reached < 0) & (column >= 0)
        if bool(strayed.any()):
            text = int(strayed.nonzero()[0])
            raise ValueError(
                f"row {row_of_text[text]}: label {int(column[text])} does not continue any item; build the rows with "
                "this catalogue"
            )

        leaf = trie.row_offsets[reached] == trie.row_offsets[reached + 1]
        node = torch.where(leaf | (reached < 0), 0, reached)
    return torch.stack(passed, 1)[tokens >= 0].numpy()
