"""Gradient checkpointing as it was: TRL switches it off for generation, and on again without what it had been told.

Its argument for that, `gradient_checkpointing_kwargs`, knows neither `every_n_layers` nor `offload` (TRL 1.16).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


SETTINGS = ("gradient_checkpointing", "_gradient_checkpointing_func")


@contextmanager
def checkpointing_kept(model: Any) -> Iterator[None]:
    """Afterwards, each layer recomputes its activations, or keeps them, as before."""
    before = {
        module: {name: vars(module)[name] for name in SETTINGS if name in vars(module)} for module in model.modules()
    }
    try:
        yield
    finally:
        for module, settings in before.items():
            vars(module).update(settings)
