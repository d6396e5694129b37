"""A small decoder and its tokenizer from scratch, one token an item (or a few, for semantic IDs).

The architecture is Phi-3's with tied embeddings, which is Llama's with dropout on what each layer adds: rotary
positions suit rows that begin anywhere in a history, and small data needs the dropout. It trains in minutes on a CPU,
so it also stands in wherever a method is to be seen end to end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)

from trl_rec.items.catalog import ItemCatalog


WORDS = r"<[^<>\s]+>|\w+|[^\w\s]"


def make_tokenizer(catalog: ItemCatalog, texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the catalogue's new tokens and `<pad> <bos> <eos>`, nothing else. Given `texts`, it also
    knows their words and signs, each a token, and `<unk>` for others; it writes no white space."""
    if catalog.surface == "title":
        raise ValueError("titles need a pretrained tokenizer; choose the surface item_token or semantic_id")
    words = sorted({word for text in texts for word in re.findall(WORDS, text)} - set(catalog.new_tokens))
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"} | (
        {"unk_token": "<unk>"} if words else {}
    )
    tokens = dict.fromkeys(["<pad>", "<bos>", "<eos>", *catalog.new_tokens, *special.values(), *words])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special.get("unk_token", "<pad>")))
    if words:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("<[^>]+>"), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def make_model(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    dropout: float = 0.2,
    max_length: int = 512,
    seed: int = 0,
) -> PreTrainedModel:
    """A decoder with random weights over the tokenizer's vocabulary, for texts of up to `max_length` tokens. `dropout`
    is on the attention weights and on what each layer adds."""
    set_seed(seed)
    return Phi3ForCausalLM(
        Phi3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            max_position_embeddings=max_length,
            attention_dropout=dropout,
            resid_pdrop=dropout,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
