"""Hashes values by their content: arrays, models, tries, priors, and collections of these.

If two values have the same hash, an evaluation has the same results with either of them. Values whose content cannot
be read, such as functions, have no hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn


if TYPE_CHECKING:
    from hashlib import blake2b


class Unidentified(TypeError):
    """Raised if a value has no hash, such as a prior that calls a function."""


class Hashed:
    """A value that is hashed at most once, when its hash is first needed."""

    def __init__(self, value: Any) -> None:
        self._value = value

    @cached_property
    def hash(self) -> str:
        """The hash of the value."""
        return content_hash(self._value)


def content_hash(value: Any) -> str:
    """Returns the hash of a value.

    Args:
        value: None, a number, a string, an array, a tensor, a model or a [`Hashed`], or a dataclass, list, tuple or
            mapping of these. Anything else raises [`Unidentified`].
    """
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, value)
    return digest.hexdigest()


def _update(digest: blake2b, value: Any) -> None:
    """Updates a hash. Types and sizes are hashed too, so that, for example, 1 and "1" get different hashes."""
    if isinstance(value, np.ndarray | Tensor):
        _update_by_array(digest, value)
    elif isinstance(value, nn.Module):
        _update(digest, [_describe(value), *chain(value.named_parameters(), value.named_buffers())])
    elif isinstance(value, Mapping):
        _update(digest, [(name, value[name]) for name in sorted(value)])
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} values ".encode())
        for one in value:
            _update(digest, one)
    elif is_dataclass(value) and not isinstance(value, type):
        digest.update(f"{type(value).__module__}.{type(value).__qualname__} ".encode())
        _update(digest, {field.name: getattr(value, field.name) for field in fields(value)})
    else:
        digest.update(_plain(value).encode())


def _update_by_array(digest: blake2b, array: np.ndarray | Tensor) -> None:
    if isinstance(array, Tensor):
        flat = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif array.dtype.hasobject:
        raise Unidentified("an array of objects has no hash")
    else:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    digest.update(f"{type(array).__name__} {array.dtype} {tuple(array.shape)} ".encode())
    digest.update(flat.data)


def _plain(value: Any) -> str:
    """Converts None, a number, a string or a [`Hashed`] to a string. NumPy numbers are treated like Python numbers."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Hashed):
        return f"hash {value.hash} "
    if value is None or isinstance(value, bool | int | float):
        return f"{type(value).__name__} {value!r} "
    if isinstance(value, str):
        return f"text {len(value)} {value} "
    raise Unidentified(f"{type(value).__name__} has no hash")


def _describe(model: nn.Module) -> str:
    """Returns the configuration of a model and of its adapters."""
    from trl_rec.trainer.base.saving.fingerprint import as_json, model_entries  # imported here, as it loads TRL

    return json.dumps(as_json(model_entries(model, "model")), sort_keys=True)
