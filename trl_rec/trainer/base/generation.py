"""A model that decodes while it is in training: whole, and without what would stop it where processes decode unequally
much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl_rec.compat import unwrapped_for_generation, without_step_hook


@contextmanager
def whole_model(wrapped: Any, accelerator: Any) -> Iterator[Any]:
    """Inside, the model itself, with all its weights; afterwards, all is as it was.

    Args:
        wrapped: The model as the engine has it.
        accelerator: The trainer's.
    """
    with unwrapped_for_generation(wrapped, accelerator) as model, without_step_hook(wrapped):
        yield model
