"""Connects the processes of a launch, and sends results of the main process to all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env


T = TypeVar("T")


def join_processes() -> None:
    """Joins the processes of `accelerate launch`. Call this before any other code creates a `PartialState`.

    On a CPU, `PartialState` joins other processes only if it is created with `cpu=True`. Otherwise, each process would
    assume that it is the only one. Trainers do not need this function, because `TrainingArguments` joins the
    processes.
    """
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def on_main_process(decide: Callable[[], T]) -> T:
    """Calls `decide` on the main process, and returns the result on every process.

    With several processes, a `ValueError` or `OSError` of `decide` is raised as a `ValueError` on every process. If
    the error were raised only on the main process, the other processes would wait forever.
    """
    state = PartialState()
    if state.num_processes == 1:
        return decide()

    outcome: list[object] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = decide()
        except (ValueError, OSError) as error:
            outcome[1] = str(error)
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]  # type: ignore[return-value]  # the result of `decide`
