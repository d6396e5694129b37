"""Collates preference rows into batches. In each row of a batch, the chosen completion comes before the rejected ones.

Legend: B rows, P tokens of the longest prompt, K maximum number of completions per row, C tokens of the longest
completion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.items.trie import TokenTrie
from trl_rec.ragged import Ragged


CHECKED_TOGETHER = 10_000  # number of rows that are checked at once, to limit memory


@dataclass
class PreferenceCollator:
    """Pads prompts on the left and completions on the right.

    Empty completions are added to rows that have fewer than K completions.

    Args:
        pad_token_id (`int`): Token id used for padding.
        trie (`TokenTrie`, *optional*): Trie of the catalogue. If given, the batch contains, for each completion
            token, the trie node before that token.
    """

    pad_token_id: int
    trie: TokenTrie | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the tensors of a batch.

        Returns:
            - `prompt_ids` and `prompt_mask`, `(B, P)`: The prompts.
            - `completion_ids` and `completion_mask`, `(B, K, C)`: The completions, the chosen one first.
            - `trie_nodes`, `(B, K, C)`: The trie node before each token, if there is a trie; -1 for padding.
            - `ref_logps`, `(B, K)`: The reference log-probabilities, if the rows contain them.
        """
        # 1. Pad all completions of the batch to the same length with -1.
        completions = [[row["chosen_ids"], *row["rejected_ids"]] for row in rows]
        counts = np.array([len(of_row) for of_row in completions])
        tokens = Ragged.from_lists([completion for of_row in completions for completion in of_row])
        padded = torch.from_numpy(tokens.padded(fill=-1))  # (sum of counts, C)

        # 2. Arrange the completions by row. Missing completions point to an empty completion at the end.
        empty = padded.new_full((1, padded.shape[1]), -1)
        numbers = Ragged.from_lengths(np.arange(len(tokens)), counts)
        place = torch.from_numpy(numbers.padded(fill=len(tokens)))  # (B, K)
        ids = torch.cat([padded, empty])[place]  # (B, K, C)

        prompts = Ragged.from_lists([row["prompt_ids"] for row in rows])
        prompt_mask = Ragged(np.ones_like(prompts.values), prompts.offsets)
        batch = {
            "prompt_ids": torch.from_numpy(prompts.padded(fill=self.pad_token_id, left=True)),
            "prompt_mask": torch.from_numpy(prompt_mask.padded(fill=0, left=True)).bool(),
            "completion_ids": ids.masked_fill(ids < 0, self.pad_token_id),
            "completion_mask": ids >= 0,
        }
        if self.trie is not None:
            batch["trie_nodes"] = self.trie.walk(ids)[..., :-1].masked_fill(ids < 0, -1)
        if "ref_logps" in rows[0]:
            ref_logps = Ragged.from_lists([row["ref_logps"] for row in rows], np.float32)
            batch["ref_logps"] = torch.from_numpy(ref_logps.padded(fill=0))
        return batch


def check_on_catalogue(rows: Dataset, trie: TokenTrie) -> None:
    """Raises ValueError if a completion in the tokenized rows is not exactly one item."""
    trie = trie.to("cpu")
    first = 0
    for batch in rows.select_columns(["chosen_ids", "rejected_ids"]).iter(CHECKED_TOGETHER):
        pairs = zip(batch["chosen_ids"], batch["rejected_ids"], strict=True)
        completions = [[chosen, *rejected] for chosen, rejected in pairs]
        tokens = Ragged.from_lists([completion for of_row in completions for completion in of_row])

        # A completion has to end at a leaf: a node without children.
        nodes = trie.walk(torch.from_numpy(tokens.padded(fill=-1)))
        ends = nodes.gather(1, torch.from_numpy(tokens.lengths).unsqueeze(1)).squeeze(1)
        wrong = (ends < 0) | (trie.row_offsets[ends] != trie.row_offsets[ends + 1])
        if bool(wrong.any()):
            row_ids = np.repeat(np.arange(len(completions)), [len(of_row) for of_row in completions])
            row = first + int(row_ids[wrong.numpy()][0])
            raise ValueError(
                f"row {row}: a completion is not an item of the catalogue; correct it, or set normalize='vocabulary'"
            )
        first += len(completions)
