"""Controls when a mixture-of-experts model computes its load-balancing loss, and over which tokens.

A mixture of experts computes this loss in its forward pass, over the tokens that the `attention_mask` marks. The mask
must have the shape of the input, `(rows, columns)`. In decoding with a cache, the mask has another shape, because it
also covers the cached tokens. The loss is therefore requested only in training. In training, rows in which several
completions share one prompt (see `completions.py`) and rows with branches (see `branches.py`) need a mask of another
shape for attention. For such rows, [`attending_by`] gives the attention layers a mask of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel


def is_mixture(model: PreTrainedModel) -> bool:
    """Returns whether the model is a mixture of experts that can return its router logits."""
    return hasattr(model.config.get_text_config(), "output_router_logits")


def routing(model: PreTrainedModel, balanced: bool) -> dict[str, bool]:
    """Returns arguments for a forward pass that computes the load-balancing loss if and only if `balanced` is True.

    The arguments override the model's configuration. The dict is empty for a model that is not a mixture of experts.
    """
    return {"output_router_logits": balanced} if is_mixture(model) else {}


def balance_on_request(model: PreTrainedModel) -> None:
    """Turns the load-balancing loss off in the model's configuration, so that only [`routing`] can turn it on.

    `SFTTrainer` turns the loss on in the configuration. A model saved with this setting could not generate for a batch
    of prompts.
    """
    if is_mixture(model):
        model.config.get_text_config().output_router_logits = False


def balancing_loss(model: PreTrainedModel, outputs: Mapping[str, Any]) -> Tensor:
    """Returns the load-balancing loss from the outputs of a forward pass that computed it."""
    loss = outputs.get("aux_loss")
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"{type(model).__name__} does not return a load-balancing loss; set router_aux_loss_coef to 0"
        )
    return loss


@contextmanager
def attending_by(model: PreTrainedModel, mask: Tensor) -> Iterator[None]:
    """Makes the layers of the model use `mask` for attention inside the `with` block.

    The `attention_mask` of a forward pass then only selects the tokens over which the load-balancing loss is computed.

    Args:
        model: The model itself, not the wrapper of a distributed engine.
        mask: The mask for attention, in any form that the model accepts.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model

    def exchange(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Returns the arguments of the decoder, with `mask` as the attention mask."""
        return args, {**kwargs, "attention_mask": mask}

    # Keep the hook out of compiled code, which would not notice that the hook is added and removed.
    hook: Any = torch.compiler.disable(exchange)
    handle = base.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
