"""Simulates a device, in order to find code that mixes CPU tensors and device tensors. No hardware is needed.

The tensors of the device store their values on the CPU, but only operations of the device can read them. As on a GPU,
an operation that mixes CPU tensors and device tensors raises an error, and a tensor must be copied before the host can
read it. After a call of `make_pretend_device`, the device stays registered until the process ends, and libraries
choose it by default. Therefore, call `make_pretend_device` in a separate process.

The device is a torch backend written in Python. Torch calls this interface experimental.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map


AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
NAME = "pretend"
aten = torch.ops.aten
# A GPU also accepts tensors of the CPU in these operations: copies, and indexing by a tensor of the CPU.
MAY_MIX = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor}
_registered: list[torch.library.Library] = []  # deleting a library removes what it registered


class PretendTensor(Tensor):
    """A tensor on the device. Its own storage is empty, and `value` contains its values."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> PretendTensor:
        """Returns a tensor with the shape, strides and dtype of the value, but on the device."""
        return Tensor._make_wrapper_subclass(
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def tolist(self) -> Any:
        """Copies the values to the host. Torch's own method would read the empty storage."""
        return self.value.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation that has a tensor of the device among its arguments."""
        return _run(func, *args, **(kwargs or {}))


def make_pretend_device() -> torch.device:
    """Registers the device, once per process."""
    if not _registered:
        backend_registration._setup_privateuseone_for_python_backend(NAME)
        every, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        # `_run` also handles operations that have no tensor of the device as an argument, such as `torch.ones`.
        every.fallback(_run, "PrivateUse1")
        # Torch's own kernel of `arange` resizes an empty tensor, but a `PretendTensor` cannot change its size.
        for made in (aten.arange.default, aten.arange.start, aten.arange.start_step):
            own.impl(made, partial(_run, made), "PrivateUse1")
        _registered.extend([every, own])
        torch.tensor = _moved_afterwards(torch.tensor)
        torch.as_tensor = _moved_afterwards(torch.as_tensor)
    return torch.device(NAME, 0)


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Runs the operation on the values of its tensors. The result is on the device, unless the operation copies to the
    CPU."""
    # 1. Refuse to mix tensors of the CPU and of the device. CPU tensors without dimensions are allowed, as on a GPU.
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    foreign = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.dim()]
    if ours and foreign and func not in MAY_MIX:
        raise RuntimeError(f"{func} mixes tensors of the CPU and of {NAME}")

    # 2. Run the operation.
    device = kwargs.get("device")
    stays = bool(ours) if device is None else torch.device(device).type == NAME
    if func is aten.copy_.default:
        stays = isinstance(args[0], PretendTensor)
    values, options = tree_map(_value, (args, kwargs))
    output = func(*values, **options)

    # 3. Wrap the result. If the operation works in place, return the same tensor that it was given.
    if not stays:
        return output
    given = {id(tensor.value): tensor for tensor in ours}
    return tree_map(lambda leaf: _placed(leaf, given), output)


def _placed(leaf: Any, given: dict[int, PretendTensor]) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return given[id(leaf)] if id(leaf) in given else PretendTensor(leaf)


def _value(leaf: Any) -> Any:
    """Converts an argument for an operation on the CPU: any device becomes the CPU, and a `PretendTensor` becomes its
    values."""
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return leaf.value if isinstance(leaf, PretendTensor) else leaf


def _moved_afterwards(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns `torch.tensor` or `torch.as_tensor`, changed to make the tensor on the CPU and then move it. Torch's own
    functions cannot call a backend that is written in Python."""

    def moved(data: Any, *, device: torch.device | str | None = None, **options: Any) -> Tensor:
        made = make(data, **options)
        return made if device is None else made.to(device)

    return moved
