"""Batches of next-item rows and of list rows, with the trie node at which each target token is chosen.

Labels that belong to no item, such as those of a text, have the node `FREE`: the whole vocabulary is legal there.

Legend: B rows, T tokens of the longest row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.dataset import split_rows
from trl_rec.data.rows import IGNORED
from trl_rec.items.trie import TokenTrie
from trl_rec.items.twins import Twins
from trl_rec.ragged import Ragged
from trl_rec.trainer.bear.list_labels import list_choices


FREE = -2


@dataclass
class NextItemCollator:
    """Pads rows and, given a trie, removes forced tokens from the labels.

    A target token that is the only legal one has no loss. Neither the output embedding nor the count of target tokens
    should include it.

    Args:
        pad_token_id (`int`): Fills `input_ids`.
        trie (`TokenTrie`, *optional*): The catalogue. Without it no token is forced.
        exclude_history (`bool`, *optional*, defaults to `True`): Whether items of the history are illegal in lists.
        twins (`Twins`, *optional*): Items with the same title, which are illegal together.
        padding_side (`str`, *optional*, defaults to `"left"`): `"left"` or `"right"`.
        pad_to_multiple_of (`int`, *optional*): Pads the length to a multiple of this number.
    """

    pad_token_id: int
    trie: TokenTrie | None = None
    exclude_history: bool = True
    twins: Twins | None = None
    padding_side: str = "left"
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids attention_mask position_ids labels` and, given a trie, `trie_nodes`, each `(B, T)`. List rows
        also get the other entries of [`list_choices`]."""
        tokens = Ragged.from_lists([row["input_ids"] for row in rows])
        mask = self._pad(Ragged(tokens.values * 0 + 1, tokens.offsets), 0)
        batch = {
            "input_ids": self._pad(tokens, self.pad_token_id),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "labels": self._pad(Ragged.from_lists([row["labels"] for row in rows]), IGNORED),
        }
        if self.trie is None:
            return batch

        if "items" in rows[0]:
            batch.update(list_choices(rows, batch["labels"], self.trie, self.exclude_history, self.twins))
            batch["labels"] = batch["labels"].masked_fill(batch["trie_nodes"] < 0, IGNORED)
        else:
            nodes = self._pad(Ragged.from_lists([row["trie_nodes"] for row in rows]), -1)
            widths = self.trie.row_offsets[nodes + 1] - self.trie.row_offsets[nodes]
            # A node with one child leaves no choice, and -1 is not a label at all.
            forced = ((nodes < 0) | (widths == 1)) & (nodes != FREE)
            batch["labels"] = batch["labels"].masked_fill(forced, IGNORED)
            batch["trie_nodes"] = nodes.masked_fill(forced, -1)
        return batch

    def _pad(self, rows: Ragged, fill: int) -> Tensor:
        width = int(rows.lengths.max())
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        return torch.from_numpy(rows.padded(fill=fill, width=width, left=self.padding_side == "left"))


def with_trie_nodes(rows: Dataset, trie: TokenTrie, free: np.ndarray | None = None) -> Dataset:
    """The rows with a column `trie_nodes`: the node at which each label is chosen, -1 where there is no label.

    The labels of a row are the paths of one item after another. A label that continues no item raises an error that
    names the row.

    Args:
        rows: Rows with `labels`.
        trie: The catalogue.
        free: `(num_rows,)`, rows whose labels are not items; these have the node `FREE`.
    """
    labels = split_rows(rows, "labels")
    trie = trie.to("cpu")
    nodes = np.full(len(labels.values), -1, np.int32)
    learned = labels.values != IGNORED
    if free is not None:
        is_free = free[labels.row_ids]
        nodes[learned & is_free] = FREE
        learned &= ~is_free

    counts = np.bincount(labels.row_ids[learned], minlength=len(labels))
    nodes[learned] = _nodes(Ragged.from_lengths(labels.values[learned], counts), trie)
    return rows.add_column("trie_nodes", Ragged(nodes, labels.offsets).to_arrow())


def _nodes(targets: Ragged, trie: TokenTrie) -> np.ndarray:
    """The node of each target token. All rows are walked at once; after a leaf the next token starts at the root."""
    tokens = torch.from_numpy(targets.padded(width=max(1, int(targets.lengths.max(initial=0)))))  # (B, T)
    node = torch.zeros(len(tokens), dtype=torch.int64)  # (B,)
    passed: list[Tensor] = []
    for column in tokens.unbind(1):
        passed.append(node)
        reached = trie.advance(node, column)

        # Padding (-1) leads nowhere; any other token that leads nowhere is wrong.
        strayed = (reached < 0) & (column >= 0)
        if bool(strayed.any()):
            row = int(strayed.nonzero()[0])
            raise ValueError(
                f"row {row}: label {int(column[row])} continues no item; was the row built with this catalogue?"
            )

        leaf = trie.row_offsets[reached] == trie.row_offsets[reached + 1]
        node = torch.where(leaf | (reached < 0), 0, reached)
    return torch.stack(passed, 1)[tokens >= 0].numpy()
