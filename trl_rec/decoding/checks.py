"""Checks the prompts before the model runs, and the scores after it has run. Also sets the evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trl_rec.items.trie import TokenTrie


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def checked_prompts(model: PreTrainedModel, prompts: Mapping[str, Tensor], trie: TokenTrie) -> tuple[Tensor, Tensor]:
    """Returns `input_ids` and `attention_mask` on the model's device. Raises ValueError if a prompt is invalid, or if
    the model cannot read the prompts or the trie's tokens."""
    input_ids = prompts["input_ids"].to(model.device)
    attention_mask = prompts["attention_mask"].to(model.device)

    # Check that every prompt has a token, and that no prompt is padded on the right. Copy both results to the host in
    # one transfer.
    has_tokens, is_left_padded = False, False
    if input_ids.numel():
        checks = [attention_mask.any(1).all(), attention_mask[:, -1].bool().all()]
        has_tokens, is_left_padded = torch.stack(checks).tolist()
    if not has_tokens:
        raise ValueError(
            "input_ids contains no prompts, or a prompt without tokens; give every prompt at least one token, such "
            "as BOS"
        )
    if not is_left_padded:
        raise ValueError("prompts must be padded on the left; set tokenizer.padding_side = 'left'")

    config = model.config.get_text_config()
    if trie.max_token >= config.vocab_size:
        raise ValueError(
            f"the trie contains token {trie.max_token}, but the model's vocabulary ends at {config.vocab_size - 1}; "
            "build the trie with the model's own tokenizer, and resize the model's embeddings after adding tokens"
        )

    longest = input_ids.shape[1] + trie.max_depth
    room = config.to_dict().get("max_position_embeddings")
    if room is not None and longest > room:
        raise ValueError(
            f"the prompt and the longest item together take {longest} tokens, but the model has {room} positions; "
            f"encode prompts with PromptFormat.encode(..., max_length={room}), which leaves room for the longest item"
        )
    return input_ids, attention_mask


def check_no_nan(scores: Tensor) -> None:
    """Raises ValueError if the scores contain NaN, which comes from NaN in the model's logits."""
    if bool(scores.isnan().any()):
        raise ValueError(
            "the model's logits contain NaN; check the model's weights, or load the model with a dtype of larger "
            "range, such as bfloat16"
        )


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Puts the model into evaluation mode inside the block, and restores its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
