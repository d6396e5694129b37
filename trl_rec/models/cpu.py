"""Chooses the number of CPU threads for a model, and warns if the CPU is slow with the model's dtype.

A small model uses one thread. Its operations are so short that several threads would spend most of their time waiting
for each other and, on a busy machine, for a free core.
"""

from __future__ import annotations

import logging
import os
from functools import cache

import torch
from accelerate import PartialState
from torch import nn

from trl_rec.compat import cpu_computes_in, num_weights, user_environment
from trl_rec.models.precision import LOW_PRECISION
from trl_rec.threads import NUMBERS


logger = logging.getLogger(__name__)

# A model with fewer weights than this is small. The models from scratch in the recipes are small, and the smallest
# pretrained model in the recipes has 135 million weights.
SMALL = 20_000_000


def adapt_to_cpu(model: nn.Module, autocast: torch.dtype | None = None) -> None:
    """Chooses the number of threads for a model on the CPU. Warns if the CPU has no instructions for the model's
    dtype.

    Args:
        model (`nn.Module`): The model that is about to be trained or to rank items.
        autocast (`torch.dtype`, *optional*): The dtype in which the model computes, if it differs from that of
            the weights.
    """
    if next(model.parameters()).device.type == "cpu":
        choose_threads(model)
        for kind in LOW_PRECISION:
            if any(parameter.dtype == kind for parameter in model.parameters()):
                _check_speed(kind, "dtype to float32")
            elif kind == autocast:
                _check_speed(kind, f"{'bf16' if kind == torch.bfloat16 else 'fp16'} to false")


@cache
def _check_speed(kind: torch.dtype, remedy: str) -> None:
    """Warns, once, if the CPU has no instructions for a dtype."""
    if not cpu_computes_in(kind) and PartialState().is_main_process:
        name = str(kind).removeprefix("torch.")
        logger.warning(
            "this CPU has no instructions for %s, so the model may run twenty times slower than in float32; set %s",
            name,
            remedy,
        )


def choose_threads(model: nn.Module) -> None:
    """Sets torch's number of threads for a model on the CPU: to 1 if the model is small, otherwise to torch's default.

    Nothing changes if the user has chosen a number of threads with `OMP_NUM_THREADS`, `MKL_NUM_THREADS` or
    `torch.set_num_threads`. A number set with `torch.set_num_threads` is not noticed if it equals torch's default, or
    if it is 1 and was set after the first call of this function.
    """
    default = _default_threads()
    variables = user_environment()
    is_chosen = any(name in variables for name in NUMBERS) or torch.get_num_threads() not in (1, default)
    if not is_chosen and default is not None:
        torch.set_num_threads(1 if num_weights(model) < SMALL else default)


@cache
def _default_threads() -> int | None:
    """Returns the number of threads that torch had when this function was first called.

    Returns None if the user had chosen this number.
    """
    threads = torch.get_num_threads()
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return threads if threads in (available, _physical_cores()) else None


def _physical_cores() -> int | None:
    """Returns the number of physical cores, which torch may use as its default number of threads."""
    import psutil  # a dependency of accelerate

    count: int | None = psutil.cpu_count(logical=False)
    return count
