"""Collates prompts into batches, with the histories and targets that the rewards of sampled lists depend on.

Legend: B prompts, P tokens of the longest prompt, H items of the longest history, T maximum number of targets per
row, E maximum number of excluded items per row, M reference lists, K items per list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.dataset import split_rows
from trl_rec.data.prompts import PromptFormat
from trl_rec.ragged import Ragged


@dataclass
class ListPromptCollator:
    """Pads prompts on the left, and pads histories and targets with -1 on the right.

    Args:
        pad_token_id (`int`): Token id used to pad prompts.
        exclusions (`Callable`, *optional*): A function, such as `PromptFormat.exclusions`, that maps histories to the
            items that lists must not contain.
    """

    pad_token_id: int
    exclusions: Callable[[Ragged], Ragged] | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the tensors of a batch.

        Returns:
            - `prompt_ids` and `prompt_mask`, `(B, P)`: The prompts.
            - `history`, `(B, H)`, and `targets`, `(B, T)`: The items of each row, padded with -1.
            - `row`, `(B,)`: The index of each row in the dataset.
            - `excluded`, `(B, E)`, if `exclusions` is given: The items that the lists of each prompt must not contain,
              padded with -1.
            - `references`, `(B, M, K)`, if the rows contain reference lists: The reference lists.
        """
        prompts = Ragged.from_lists([row["prompt_ids"] for row in rows])
        history = Ragged.from_lists([row["history"] for row in rows])
        targets = Ragged.from_lists([row["targets"] for row in rows])
        prompt_mask = Ragged(prompts.values * 0 + 1, prompts.offsets).padded(fill=0, left=True)
        batch = {
            "prompt_ids": torch.from_numpy(prompts.padded(fill=self.pad_token_id, left=True)),
            "prompt_mask": torch.from_numpy(prompt_mask).bool(),
            "history": torch.from_numpy(history.padded()),
            "targets": torch.from_numpy(targets.padded()),
            "row": torch.tensor([row["row"] for row in rows]),
        }
        if self.exclusions is not None:
            batch["excluded"] = torch.from_numpy(self.exclusions(history).padded())
        if "references" in rows[0]:
            batch["references"] = torch.from_numpy(np.array([row["references"] for row in rows], np.int64))
        return batch


def as_rows(padded: np.ndarray) -> Ragged:
    """Removes the padding (-1) from an array of items, `(B, T)` or `(B, H)`, and returns its rows."""
    present = padded >= 0
    return Ragged.from_lengths(padded[present], present.sum(1))


def check_enough_items(
    prompts: Dataset, prompt_format: PromptFormat, list_length: int, *, num_recommendable: int
) -> None:
    """Raises ValueError if the history of a prompt leaves fewer items to recommend than a list contains.

    The first `num_recommendable` items of the catalogue can be recommended; the others are retired.
    """
    histories = prompt_format.exclusions(split_rows(prompts, "history"))
    for row in np.flatnonzero(histories.lengths > num_recommendable - list_length).tolist():
        # A history may contain an item several times, and may contain retired items.
        left = num_recommendable - np.count_nonzero(np.unique(histories[row]) < num_recommendable)
        if left < list_length:
            raise ValueError(
                f"the history of training row {row} leaves {left} of {num_recommendable} items, too few for a list of "
                f"{list_length}; reduce list_length, remove users whose histories are this long, or set "
                "eval_exclude_history to false"
            )
