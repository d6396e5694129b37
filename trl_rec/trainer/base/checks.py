"""Checks, before training, whether a trainer supports its arguments, its processes and its model."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import TrainingArguments


# Arguments of TRL's trainers that none of our trainers supports, each with the reason.
NOT_TAKEN = {
    "data_collator": "the trainer's own collator makes the batches that the loss needs",
    "compute_metrics": "the trainer keeps no logits (configure evaluation with the eval_* options, or call rank)",
}
# Arguments of SFTTrainer that our subclasses of it do not support, each with the reason.
NOT_TAKEN_BY_SFT = {
    **NOT_TAKEN,
    "preprocess_logits_for_metrics": NOT_TAKEN["compute_metrics"],
    "compute_loss_func": "the trainer computes the loss of its method",
    "formatting_func": "the trainer builds its rows from items",
}


def check_arguments(given: dict[str, Any], names: dict[str, str], trainer: str) -> dict[str, Any]:
    """Returns only the supported arguments. Raises `ValueError` if an unsupported argument is not None.

    Args:
        given: Keyword arguments.
        names: The unsupported arguments, and why each is not supported.
        trainer: Name of the trainer's class, for the message.
    """
    for name, why in names.items():
        if given.get(name) is not None:
            raise ValueError(f"{trainer} does not support {name}, because {why}; leave it out")
    return {name: value for name, value in given.items() if name not in names}


def check_processes(args: TrainingArguments) -> None:
    """Raises `ValueError` if one process uses several GPUs.

    DataParallel would then split each batch among the GPUs, but our losses need the whole batch.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process; start the run with accelerate launch, which starts one "
            "process per GPU, or set CUDA_VISIBLE_DEVICES to a single GPU"
        )


def check_parallelism(accelerator: Accelerator) -> None:
    """Raises `ValueError` under tensor parallelism, because the losses need different rows on every process."""
    config = accelerator.parallelism_config
    if config is not None and config.tp_size > 1:
        raise ValueError("tensor parallelism is not supported; use DDP, ZeRO or FSDP (see recipes/accelerate)")


def check_trainable(model: nn.Module) -> None:
    """Raises `ValueError` if the model has no trainable parameters."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "no parameter of the model is trainable; load an adapter with trl_rec.models.load_policy, or pass "
            "peft_config"
        )
