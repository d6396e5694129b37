"""Pads the prompts of a batch to the same length, for a forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from trl_rec.ragged import Ragged


def left_padded(prompts: Ragged, pad_token_id: int) -> dict[str, Tensor]:
    """Pads the prompts on the left, and returns `input_ids` and `attention_mask`, `(B, P)` each."""
    lengths = torch.from_numpy(prompts.lengths)
    input_ids = torch.from_numpy(prompts.padded(fill=pad_token_id, left=True))
    column = torch.arange(input_ids.shape[1])
    return {"input_ids": input_ids, "attention_mask": (column >= input_ids.shape[1] - lengths.unsqueeze(1)).long()}
