"""Checks that fields of configurations and arguments of functions are in their ranges.

A dataclass declares the range of a field in the field's type, as in `num_beams: Annotated[int, COUNT]`, and
`check_ranges` checks all fields. (The range cannot be in the field's metadata, because the parser of transformers
passes all metadata to argparse.) `INHERITED` contains the ranges of fields that TRL and transformers declare. A
function checks its arguments itself, as in `COUNT.check("top_k", top_k)`.

No range contains NaN or infinity. Whether a field may be None or a string instead of a number follows from its type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints


if TYPE_CHECKING:
    from _typeshed import DataclassInstance


LARGEST = 2**31 - 1  # larger numbers would overflow where counts are multiplied


@dataclass(frozen=True)
class Range:
    """The range of numbers that are allowed for a field or an argument.

    Args:
        low (`float`, *optional*): Lower bound. Unbounded by default.
        high (`float`, *optional*): Upper bound. Unbounded by default.
        whole (`bool`, *optional*, defaults to `False`): Whether only whole numbers are in the range.
        above (`bool`, *optional*, defaults to `False`): Whether `low` itself is outside the range.
        below (`bool`, *optional*, defaults to `False`): Whether `high` itself is outside the range.
        also (`int`, *optional*): A number outside the bounds that is allowed nevertheless.
        hint (`str`, *optional*): Text to add to the error message, such as the remedy.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    also: int | None = None
    hint: str = ""

    def __contains__(self, value: Any) -> bool:
        # NaN is not in the range, because every comparison with NaN is False.
        above_low = value > self.low if self.above else value >= self.low
        below_high = value < self.high if self.below else value <= self.high
        try:
            is_finite = self.whole or math.isfinite(value)
        except OverflowError:  # an integer that does not fit into a float
            is_finite = False
        return (above_low and below_high and is_finite) or (self.also is not None and value == self.also)

    def check(self, name: str, value: object) -> None:
        """Raises `ValueError` unless `value` is a number in the range. `name` names the value in the message."""
        is_number = isinstance(value, Integral if self.whole else Real) and not isinstance(value, bool)
        if not is_number or value not in self:
            wanted = self._bounds(value) if is_number else "a whole number" if self.whole else "a number"
            hint = f"; {self.hint}" if self.hint else ""
            raise ValueError(f"{name} must be {wanted}, not {value!r:.80}{hint}")

    def _bounds(self, value: Any) -> str:
        """Describes the bounds in words. The bound `LARGEST` is mentioned only if `value` exceeds it."""
        low = f"{'above' if self.above else 'at least'} {self.low:g}"
        high = f"{'below' if self.below else 'at most'} {self.high:.10g}"
        if self.low == -math.inf and self.high == math.inf:
            words = "a finite number"
        elif self.low == -math.inf or (self.high == LARGEST and value > LARGEST):
            words = high
        elif self.high in (math.inf, LARGEST):
            words = low
        elif self.above:
            words = f"{low} and {high}"
        else:
            words = f"from {self.low:g} to {'below ' if self.below else ''}{self.high:.10g}"
        return words if self.also is None else f"{words}, or {self.also}"


COUNT = Range(1, LARGEST, whole=True)
COUNT_FROM_0 = Range(0, LARGEST, whole=True)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)
SHARE_BELOW_ONE = Range(0, 1, below=True)
FINITE = Range()
SEED = Range(0, 2**32 - 1, whole=True)  # the seeds that numpy accepts
STEPS = Range(1, LARGEST, whole=True, also=-1, hint="-1 leaves the number of steps to num_train_epochs")

# Ranges of numeric fields of the configurations of transformers and TRL. If one of our configurations declares such a
# field again with a range, that range is used instead.
INHERITED = {
    # the batches and their order
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "eval_accumulation_steps": COUNT,
    "precompute_ref_batch_size": COUNT,
    "max_length": COUNT,
    "pad_to_multiple_of": COUNT,
    "num_train_epochs": NOT_NEGATIVE,
    "max_steps": STEPS,
    "seed": SEED,
    "data_seed": SEED,
    # the optimizer
    "learning_rate": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": SHARE_BELOW_ONE,
    "adam_beta2": SHARE_BELOW_ONE,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    # the loss
    "neftune_noise_alpha": NOT_NEGATIVE,
    "router_aux_loss_coef": NOT_NEGATIVE,
    "label_smoothing_factor": SHARE,
    "label_smoothing": SHARE,
    "loss_weights": FINITE,
    "ld_alpha": SHARE,
    "f_alpha_divergence_coef": FINITE,
    "discopop_tau": POSITIVE,
    "ref_model_mixup_alpha": SHARE,
    "ref_model_sync_steps": COUNT,
    # logging, evaluation and checkpoints; a number of steps below 1 is a fraction of all steps
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "save_steps": POSITIVE,
    "eval_delay": NOT_NEGATIVE,
    "save_total_limit": COUNT_FROM_0,
    # processes and devices
    "dataset_num_proc": COUNT,
    "dataloader_num_workers": COUNT_FROM_0,
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "local_rank": Range(-1, LARGEST, whole=True),
    "torch_empty_cache_steps": COUNT,
    # adapters
    "lora_r": COUNT,
    "lora_alpha": COUNT,
    "lora_dropout": SHARE_BELOW_ONE,
}


class NumericField(NamedTuple):
    """A field of a dataclass that contains a number, or numbers in a list or mapping.

    Args:
        range: The range of each number, or None if no range is declared.
        may_be_none: Whether the field may be None.
        may_be_text: Whether the field may be a string.
        is_list: Whether the field is a list of numbers.
        is_mapping: Whether the field maps names to numbers.
        maps_to_none: Whether the field may map a name to None.
    """

    range: Range | None
    may_be_none: bool
    may_be_text: bool
    is_list: bool
    is_mapping: bool
    maps_to_none: bool


def check_ranges(config: DataclassInstance) -> None:
    """Raises `ValueError` if a numeric field of a dataclass is outside its range, or is not a number."""
    for name, field in numeric_fields(type(config)).items():
        if field.range is None:
            continue
        for label, number in _numbers(name, getattr(config, name), field):
            field.range.check(label, number)


def _numbers(name: str, value: object, field: NumericField) -> Iterator[tuple[str, object]]:
    """Yields a pair for each number in a field's value: the name to use in messages, and the number."""
    is_exempt = (value is None and field.may_be_none) or (isinstance(value, str) and field.may_be_text)
    if is_exempt:
        return
    if field.is_list and isinstance(value, list | tuple):
        yield from ((name, number) for number in value)
    elif field.is_mapping and isinstance(value, dict):
        yield from (
            (f"{name}: {key}", number) for key, number in value.items() if not (number is None and field.maps_to_none)
        )
    elif field.is_mapping:
        raise ValueError(f"{name} must map names to numbers, but is {value!r}")
    else:
        yield name, value


@cache
def numeric_fields(kind: type[DataclassInstance]) -> dict[str, NumericField]:
    """Returns, by name, the fields of a dataclass that declare a range or whose type contains `int` or `float`."""
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for field in fields(kind):
        hint = hints[field.name]
        extras: tuple[Any, ...] = getattr(hint, "__metadata__", ())
        declared = next((extra for extra in extras if isinstance(extra, Range)), None)
        types = _types(get_args(hint)[0] if extras else hint)
        if declared is not None or {int, float} & types:
            found[field.name] = NumericField(
                declared or INHERITED.get(field.name),
                may_be_none=NoneType in types,
                may_be_text=str in types,
                is_list=not types.isdisjoint((list, tuple)),
                is_mapping=not types.isdisjoint((dict, Mapping)),
                maps_to_none=_maps_to_none(hint),
            )
    return found


def _types(hint: Any) -> set[Any]:
    """Returns the types in a type hint, such as `float`, `list` and `int` for `float | list[int]`.

    The types of a mapping's keys are left out.
    """
    origin = get_origin(hint)
    parts = get_args(hint)
    if not parts or origin is Literal:
        return {hint}
    if origin in (dict, Mapping):
        parts = parts[1:]
    return {origin}.union(*map(_types, parts))


def _maps_to_none(hint: Any) -> bool:
    """Returns whether a type hint contains a mapping whose values may be None."""
    parts = get_args(hint)
    if get_origin(hint) in (dict, Mapping):
        return NoneType in _types(parts[1])
    return any(map(_maps_to_none, parts))
