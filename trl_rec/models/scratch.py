"""Makes a small decoder-only model and its tokenizer from scratch, for items written as item tokens or semantic IDs.

The architecture is Phi-3 with tied embeddings. It is equivalent to Llama with dropout on the output of each sublayer.
The dropout reduces overfitting on small datasets. The rotary position embeddings are relative, so patterns learned at
one position of a history apply at all positions. The model trains within minutes on a CPU, so examples and tests use
it to demonstrate a method from end to end.
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
from trl_rec.models.embedding_dropout import add_embedding_dropout
from trl_rec.ranges import COUNT, SHARE_BELOW_ONE


WORDS = r"<[^<>\s]+>|\w+|[^\w\s]"  # a token in angle brackets, a word, or a punctuation mark


def make_tokenizer(catalog: ItemCatalog, texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Makes a tokenizer with the catalogue's tokens and the special tokens `<pad>`, `<bos>` and `<eos>`.

    Args:
        catalog (`ItemCatalog`): The items. They must not be written as titles.
        texts (iterable of `str`, *optional*): Texts whose words and punctuation marks are added as tokens. If given,
            the tokenizer maps all other words to `<unk>` and ignores white space.
    """
    if catalog.surface == "title":
        raise ValueError(
            "the surface 'title' needs a pretrained tokenizer; choose the surface 'item_token' or 'semantic_id'"
        )

    # 1. Collect the tokens. The special tokens and the catalogue's tokens come first, so that their ids do not depend
    # on the texts.
    words = sorted({word for text in texts for word in re.findall(WORDS, text)} - set(catalog.new_tokens))
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    if words:
        special["unk_token"] = "<unk>"
    tokens = dict.fromkeys(["<pad>", "<bos>", "<eos>", *catalog.new_tokens, *special.values(), *words])
    vocabulary = {token: index for index, token in enumerate(tokens)}

    # 2. Split texts into these tokens. Without `texts`, only tokens in angle brackets are known.
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
    embedding_dropout: float = 0.0,
    max_length: int = 512,
    seed: int = 0,
) -> PreTrainedModel:
    """Makes a decoder-only model with random weights for the tokenizer's vocabulary.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer, for example from [`make_tokenizer`].
        hidden_size (`int`, *optional*, defaults to `64`): Width of the hidden states, a multiple of twice `num_heads`.
        num_layers (`int`, *optional*, defaults to `2`): Number of layers.
        num_heads (`int`, *optional*, defaults to `2`): Number of attention heads per layer.
        dropout (`float`, *optional*, defaults to `0.2`): Dropout probability for the attention weights and for the
            output of each sublayer.
        embedding_dropout (`float`, *optional*, defaults to `0.0`): Dropout probability for the input embeddings. It
            is saved as `embd_pdrop` in the model's configuration. If you load the model to train it further, use
            [`load_model`] or [`load_policy`], because `from_pretrained` ignores this field.
        max_length (`int`, *optional*, defaults to `512`): Maximum number of tokens per text.
        seed (`int`, *optional*, defaults to `0`): Random seed for the weights.
    """
    # 1. Check the sizes.
    _check_size(hidden_size, num_layers, num_heads, max_length)
    SHARE_BELOW_ONE.check("dropout", dropout)
    SHARE_BELOW_ONE.check("embedding_dropout", embedding_dropout)

    # 2. Make the model.
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=max_length,
        attention_dropout=dropout,
        resid_pdrop=dropout,
        embd_pdrop=embedding_dropout,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    set_seed(seed)
    model = Phi3ForCausalLM(config)
    add_embedding_dropout(model)
    return model


def _check_size(hidden_size: int, num_layers: int, num_heads: int, max_length: int) -> None:
    """Raises ValueError if a model cannot have these sizes."""
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": num_heads, "max_length": max_length}
    for name, size in sizes.items():
        COUNT.check(name, size)

    # All heads have the same width. The width must be even, because rotary position embeddings rotate pairs of
    # dimensions.
    if hidden_size % (2 * num_heads):
        near = max(1, round(hidden_size / (2 * num_heads))) * 2 * num_heads
        raise ValueError(
            f"hidden_size is {hidden_size} and num_heads is {num_heads}, but hidden_size must be a multiple of twice "
            f"num_heads; set hidden_size to {near}, or change num_heads"
        )
