"""The load-balancing loss of mixture-of-experts models: when it is computed, and over which tokens.

Such a model computes this loss in its forward pass, over the tokens that its `attention_mask` marks, and reads a mask
of two dimensions only. Decoding with a cache and rows that several texts share pass other masks, so the loss is asked
for in the passes that train, and there its mask is passed apart from the one by which the model attends.
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
    """Whether the model has experts among which it routes each token, and can return its router logits."""
    return hasattr(model.config.get_text_config(), "output_router_logits")


def routing(model: PreTrainedModel, balanced: bool) -> dict[str, bool]:
    """Arguments of a forward pass that computes the load-balancing loss if `balanced`, and else never does, whatever
    the model's configuration says."""
    return {"output_router_logits": balanced} if is_mixture(model) else {}


def balance_on_request(model: PreTrainedModel) -> None:
    """Lets the model compute its load-balancing loss only where [`routing`] asks for it. `SFTTrainer` switches it on
    in the configuration, with which a saved model could not generate for a batch of prompts."""
    if is_mixture(model):
        model.config.get_text_config().output_router_logits = False


def balancing_loss(model: PreTrainedModel, outputs: Mapping[str, Any]) -> Tensor:
    """The load-balancing loss that a forward pass was asked for."""
    loss = outputs.get("aux_loss")
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"{type(model).__name__} does not return a load-balancing loss; set router_aux_loss_coef to 0"
        )
    return loss


@contextmanager
def attending_by(model: PreTrainedModel, mask: Tensor) -> Iterator[None]:
    """Inside the block, the layers of the model attend by `mask`. The `attention_mask` of a forward pass then only
    says over which tokens the load-balancing loss is.

    Args:
        model: The model itself, not the wrapper of a distributed engine.
        mask: In any form that the model accepts.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model

    def exchange(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments of the decoder, with the mask exchanged."""
        return args, {**kwargs, "attention_mask": mask}

    # Compiled code would not notice that the hook is added and removed.
    hook: Any = torch.compiler.disable(exchange)
    handle = base.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
