"""Batches of preference rows: the chosen completion first, then the rejected ones, as many as each row has.

Legend: B rows, P tokens of the longest prompt, K completions of the row with most, C tokens of the longest completion.
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


@dataclass
class PreferenceCollator:
    """Pads prompts on the left and completions on the right. A row with fewer completions has some without any token.

    Args:
        pad_token_id (`int`): Fills what is padded.
        trie (`TokenTrie`, *optional*): The catalogue; given it, each completion token learns the node at which it is
            chosen.
    """

    pad_token_id: int
    trie: TokenTrie | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`prompt_ids prompt_mask (B, P)`, `completion_ids completion_mask (B, K, C)`, and `trie_nodes (B, K, C)` with
        a trie, `ref_logps (B, K)` where the rows have them."""
        prompts = Ragged.from_lists([row["prompt_ids"] for row in rows])
        completions = [[row["chosen_ids"], *row["rejected_ids"]] for row in rows]
        tokens = Ragged.from_lists([one for several in completions for one in several])
        padded = torch.from_numpy(tokens.padded(fill=-1))
        numbers = Ragged.from_lengths(np.arange(len(tokens)), np.array([len(several) for several in completions]))
        place = torch.from_numpy(
            numbers.padded(fill=len(tokens))
        )  # an absent completion is the row of -1 after the last
        ids = torch.cat([padded, padded.new_full((1, padded.shape[1]), -1)])[place]
        batch = {
            "prompt_ids": torch.from_numpy(prompts.padded(fill=self.pad_token_id, left=True)),
            "prompt_mask": torch.from_numpy(
                Ragged(prompts.values * 0 + 1, prompts.offsets).padded(fill=0, left=True)
            ).bool(),
            "completion_ids": ids.masked_fill(ids < 0, self.pad_token_id),
            "completion_mask": ids >= 0,
        }
        if self.trie is not None:
            batch["trie_nodes"] = self.trie.walk(ids)[..., :-1].masked_fill(ids < 0, -1)
        if "ref_logps" in rows[0]:
            batch["ref_logps"] = torch.from_numpy(
                Ragged.from_lists([row["ref_logps"] for row in rows], np.float32).padded(fill=0)
            )
        return batch


def check_on_catalogue(rows: Dataset, trie: TokenTrie) -> None:
    """Refuses token rows of which a completion is no item, or is only the beginning of one."""
    trie, first = trie.to("cpu"), 0
    for batch in rows.select_columns(["chosen_ids", "rejected_ids"]).iter(10_000):
        several = [
            [chosen, *rejected] for chosen, rejected in zip(batch["chosen_ids"], batch["rejected_ids"], strict=True)
        ]
        tokens = Ragged.from_lists([one for some in several for one in some])
        ends = trie.walk(torch.from_numpy(tokens.padded(fill=-1)))
        ends = ends.gather(1, torch.from_numpy(tokens.lengths).unsqueeze(1)).squeeze(1)
        strayed = (ends < 0) | (trie.row_offsets[ends] != trie.row_offsets[ends + 1])
        if bool(strayed.any()):
            row = first + int(np.repeat(np.arange(len(several)), [len(some) for some in several])[strayed.numpy()][0])
            raise ValueError(
                f"row {row}: a completion is no item of the catalogue; with normalize='catalogue' all have to be"
            )
        first += len(several)
