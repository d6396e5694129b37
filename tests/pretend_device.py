"""A device that is not the CPU, without hardware, which shows code that mixes devices.

Its tensors have a value, on the CPU, that only the device's own operations see. An operation on tensors of both
devices is refused, as a GPU refuses it, and a tensor has to be copied before the host can read it. A process that has
called `make_pretend_device` keeps the device, and libraries then choose it by default. So call it in a process of its
own.

It is a torch backend in Python, an interface that torch calls experimental.
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
# A GPU copies from the CPU, and is indexed by tensors of the CPU.
MAY_MIX = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor}
_registered: list[torch.library.Library] = []  # what is registered is gone when its library is


class PretendTensor(Tensor):
    """A tensor on the device. Its own storage is empty: `value` is what it holds."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> PretendTensor:
        """A tensor that looks like its value, but for the device."""
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
        """Copies to the host, as torch's own does by way of the storage."""
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
        every.fallback(_run, "PrivateUse1")  # of operations without such a tensor, those that make one
        for made in (aten.arange.default, aten.arange.start, aten.arange.start_step):
            own.impl(made, partial(_run, made), "PrivateUse1")  # torch's own enlarges an empty tensor
        _registered.extend([every, own])
        torch.tensor = _moved_afterwards(torch.tensor)
        torch.as_tensor = _moved_afterwards(torch.as_tensor)
    return torch.device(NAME, 0)


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """The operation on the values of its tensors. What it returns is on the device, unless it copies to the CPU."""
    # 1. Refuse a tensor of the CPU beside one of the device. A tensor without dimensions may be a number of the host.
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    foreign = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.dim()]
    if ours and foreign and func not in MAY_MIX:
        raise RuntimeError(f"{func} mixes tensors of the CPU and of {NAME}")

    # 2. Run it.
    device = kwargs.get("device")
    stays = bool(ours) if device is None else torch.device(device).type == NAME
    if func is aten.copy_.default:
        stays = isinstance(args[0], PretendTensor)
    values, options = tree_map(_value, (args, kwargs))
    output = func(*values, **options)

    # 3. An operation in place returns the tensor that it was given.
    if not stays:
        return output
    given = {id(tensor.value): tensor for tensor in ours}
    return tree_map(lambda leaf: _placed(leaf, given), output)


def _placed(leaf: Any, given: dict[int, PretendTensor]) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return given[id(leaf)] if id(leaf) in given else PretendTensor(leaf)


def _value(leaf: Any) -> Any:
    """The argument as the CPU takes it."""
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return leaf.value if isinstance(leaf, PretendTensor) else leaf


def _moved_afterwards(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` with its tensor made on the CPU and then moved, as a backend in Python cannot be reached from
    within."""

    def moved(data: Any, *, device: torch.device | str | None = None, **options: Any) -> Tensor:
        made = make(data, **options)
        return made if device is None else made.to(device)

    return moved
