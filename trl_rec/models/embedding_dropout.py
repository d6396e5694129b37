"""Adds dropout to the input embeddings of Phi-3 models.

Phi-3's configuration has a field for the dropout probability, `embd_pdrop`, but transformers never reads it. This
file adds the dropout as a submodule of the first layer, and a forward pre-hook of that layer applies it to the
layer's input. Therefore:

- The names of the weights do not change, and a saved model is an ordinary Phi-3.
- `model.eval()` and TRL's `disable_dropout` turn the dropout off like any other dropout.
- The dropout works with adapters. A hook of the embedding module might not run, because PEFT bypasses this module when
  new tokens are trained.
- The dropout works under activation checkpointing, which runs the hook again with the same random numbers.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import Phi3Model, PreTrainedModel


NAME = "embedding_dropout"


def add_embedding_dropout(model: PreTrainedModel | PeftModel) -> None:
    """Adds dropout with the probability `config.embd_pdrop` to the input embeddings of a Phi-3 model.

    [`make_model`], [`load_model`], [`BearTrainer`] and [`AlroTrainer`] call this function. Call it yourself before
    another trainer trains a model that you loaded with `from_pretrained`. Other architectures, models with the
    probability 0, and models that already have the dropout do not change.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder = getattr(base, "model", None)
    if not isinstance(decoder, Phi3Model) or not decoder.config.embd_pdrop or not len(decoder.layers):
        return

    first = decoder.layers[0]
    if not hasattr(first, NAME):
        first.add_module(NAME, nn.Dropout(decoder.config.embd_pdrop).train(first.training))
        first.register_forward_pre_hook(_drop)


def _drop(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Applies the layer's dropout submodule to the hidden states, which are the layer's first input."""
    dropped: Tensor = layer.get_submodule(NAME)(inputs[0])
    return (dropped, *inputs[1:])
