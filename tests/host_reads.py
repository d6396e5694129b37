"""Counts host reads: the operations that would make the host wait for a GPU. No GPU is needed: the code under test
runs on a CPU, and every tensor is treated as if it were on a GPU.

Three kinds of operations are counted as host reads: a scalar read (`item`, `bool`, `int`, `equal`), a copy to the
host (`tolist`, `numpy`, `cpu`, `to("cpu")`), and an operation whose output has a size that depends on values
(`nonzero`, indexing by a boolean mask, `masked_select`, `unique`, `bincount`, and `repeat_interleave` without an
output size). By default, reads in the model's own forward pass are not counted, but reads in our hooks, which run
during the forward pass, are counted.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import trl_rec


ROOT = str(Path(trl_rec.__file__).parent)
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.equal.default,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = ("tolist", "numpy", "cpu", "__array__")  # visible only as tensor methods, not as dispatched operations


class HostReads(TorchDispatchMode):
    """Counts the host reads of the code inside a `with` block.

    Attributes:
        places: The number of reads at each place of our code, such as `"file.py:line"`.
        everywhere: Whether to count the reads of all code, under the single key `"elsewhere"`. By default, only the
            reads that our code makes are counted.
    """

    def __init__(self, *, everywhere: bool = False) -> None:
        super().__init__()
        self.everywhere = everywhere
        self.places: Counter[str] = Counter()
        self._patches = ExitStack()
        self._inside_copy = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._inside_copy and _reads(func, args, kwargs):
            self._count()
        return func(*args, **kwargs)

    def __enter__(self) -> HostReads:
        for name in COPIES:
            self._patches.enter_context(mock.patch.object(Tensor, name, self._counted(getattr(Tensor, name))))
        self._patches.enter_context(mock.patch.object(Tensor, "to", self._counted(Tensor.to, _to_cpu)))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def _counted(self, copy: Callable[..., Any], reads: Callable[..., bool] = lambda *args, **kwargs: True) -> Any:
        """Returns the tensor method `copy`, changed so that a call counts as one read if `reads` returns True for its
        arguments."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._inside_copy or not reads(*args, **kwargs):
                return copy(*args, **kwargs)
            self._count()
            self._inside_copy = True
            try:
                return copy(*args, **kwargs)
            finally:
                self._inside_copy = False

        return counted

    def _count(self) -> None:
        place = "elsewhere" if self.everywhere else _place()
        if place is not None:
            self.places[place] += 1


def _reads(func: Any, args: Any, kwargs: Any) -> bool:
    if func in INDEXING:
        masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
        fills = func is not aten.index.Tensor and args[2].numel() == 1  # torch uses `masked_fill`, which reads nothing
        return bool(masks) and not fills
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return func in READS


def _to_cpu(tensor: Tensor, *args: Any, **kwargs: Any) -> bool:
    """Returns whether the arguments of `Tensor.to` contain the string `"cpu"`. A `torch.device` does not count: it is
    the device of the model, which is the CPU in tests."""
    return any(isinstance(value, str) and value == "cpu" for value in (*args, *kwargs.values()))


def _place() -> str | None:
    """Returns the innermost line of our code that leads to the read. Returns None if there is no such line, or if the
    read happens in a model's own forward pass."""
    frame: Any = sys._getframe(3)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(ROOT):
            return f"{path[len(ROOT) + 1 :]}:{frame.f_lineno}"
        if f"{Path('transformers', 'models')}" in path:
            return None
        frame = frame.f_back
    return None


@contextmanager
def reads_of_steps(trainer: Any) -> Iterator[list[Counter[str]]]:
    """Yields a list that receives one counter per micro-batch: the host reads of `_prepare_inputs` and
    `compute_loss`."""
    steps: list[Counter[str]] = []
    compute_loss, prepare = trainer.compute_loss, trainer._prepare_inputs

    def prepared(*args: Any, **kwargs: Any) -> Any:
        with HostReads() as reads:
            inputs = prepare(*args, **kwargs)
        steps.append(reads.places)
        return inputs

    def computed(*args: Any, **kwargs: Any) -> Any:
        with HostReads() as reads:
            loss = compute_loss(*args, **kwargs)
        steps[-1].update(reads.places)
        return loss

    with mock.patch.object(trainer, "_prepare_inputs", prepared), mock.patch.object(trainer, "compute_loss", computed):
        yield steps
