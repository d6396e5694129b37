"""Tests that every number in a configuration has a range. Numbers just inside the range are accepted, and numbers just
outside it are refused."""

from __future__ import annotations

import importlib
import math
import pkgutil
from dataclasses import is_dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import trl_rec
from trl_rec.ranges import COUNT, FINITE, INHERITED, LARGEST, SEED, STEPS, Range, check_ranges, numeric_fields
from trl_rec.schedule import PreferenceStage
from trl_rec.trainer import AlroConfig, BearConfig, BladeConfig, SoftmaxDPOConfig


SUFFIXES = ("Config", "Arguments", "Stage")
NEEDS_VLLM = "trl_rec.serving.vllm.processor"  # the only module that imports vLLM when it is loaded


def configurations() -> list[type[Any]]:
    """Returns all dataclasses of the package that contain options."""
    found: set[type[Any]] = set()
    modules = [module.name for module in pkgutil.walk_packages(trl_rec.__path__, "trl_rec.")]
    assert NEEDS_VLLM in modules
    for name in modules:
        if name == NEEDS_VLLM:
            continue
        for kind in vars(importlib.import_module(name)).values():
            if isinstance(kind, type) and is_dataclass(kind) and kind.__module__.startswith("trl_rec"):
                found.add(kind)
    return sorted((kind for kind in found if kind.__name__.endswith(SUFFIXES)), key=lambda kind: kind.__name__)


CONFIGURATIONS = configurations()


def test_the_configurations_are_found() -> None:
    names = {kind.__name__ for kind in CONFIGURATIONS}
    assert {
        "BearConfig",
        "AlroConfig",
        "BladeConfig",
        "SoftmaxDPOConfig",
        "RatingStageConfig",
        "RecModelConfig",
        "EvaluationConfig",
        "DualIdsConfig",
        "PreferenceStage",
        "PrepareArguments",
        "TokenizeArguments",
        "RecommendArguments",
    } <= names


@pytest.mark.parametrize("kind", CONFIGURATIONS, ids=lambda kind: kind.__name__)
def test_every_number_has_a_range(kind: type[Any]) -> None:
    without = [name for name, field in numeric_fields(kind).items() if field.range is None]
    assert not without, (
        f"{kind.__name__}: declare a range for {without}; fields of transformers and TRL get theirs in INHERITED"
    )


@pytest.mark.parametrize("kind", CONFIGURATIONS, ids=lambda kind: kind.__name__)
def test_whole_numbers_have_ranges_of_whole_numbers(kind: type[Any]) -> None:
    hints = importlib.import_module("typing").get_type_hints(kind)
    for name, field in numeric_fields(kind).items():
        assert field.range is not None
        is_whole = "int" in str(hints[name]) and "float" not in str(hints[name])
        assert field.range.whole == is_whole, f"{kind.__name__}.{name}"


def bounds(range: Range) -> tuple[list[float], list[float]]:
    """Returns numbers inside a range, at or next to its bounds, and numbers outside the range."""
    step = 1 if range.whole else math.ulp(1.0)
    inside: list[float] = [] if range.also is None else [range.also]
    outside: list[float] = [math.nan, math.inf, -math.inf]
    if range.low > -math.inf:
        inside.append(range.low + (step if range.above else 0))
        outside.append(range.low - (0 if range.above else step))
    if range.high < math.inf:
        inside.append(range.high - (step if range.below else 0))
        outside.append(range.high + (0 if range.below else step))
    if range.whole:
        outside.append(range.low + 0.5)
    return inside, [number for number in outside if number != range.also]


def set_field(config: Any, name: str, value: object) -> Any:
    """Returns a copy of the configuration in which one field has the given value. `__post_init__` is not called."""
    changed = object.__new__(type(config))
    vars(changed).update(vars(config) | {name: value})
    return changed


def example(kind: type[Any]) -> Any:
    """Returns an instance with the defaults. `__init__` is not called, because a trainer's configuration chooses a
    device there."""
    made = object.__new__(kind)
    for name, field in kind.__dataclass_fields__.items():
        if field.default_factory is not importlib.import_module("dataclasses").MISSING:
            vars(made)[name] = field.default_factory()
        else:
            vars(made)[name] = field.default
    return made


@pytest.mark.parametrize("kind", CONFIGURATIONS, ids=lambda kind: kind.__name__)
def test_bounds_are_accepted_and_numbers_outside_are_refused(kind: type[Any]) -> None:
    default = example(kind)
    check_ranges(default)
    for name, field in numeric_fields(kind).items():
        assert field.range is not None
        inside, outside = bounds(field.range)
        for number in inside:
            whole = int(number) if field.range.whole else number
            check_ranges(set_field(default, name, {"x": whole} if field.is_mapping else whole))
        for number in outside:
            with pytest.raises(ValueError, match=rf"^{name}(: x)? must be .*, not "):
                check_ranges(set_field(default, name, {"x": number} if field.is_mapping else number))
        one = () if field.is_list else ([1],)
        for other in (
            True,
            [["a"]],
            *one,
            *(() if field.may_be_text else ("3",)),
            *(() if field.may_be_none else (None,)),
        ):
            with pytest.raises(ValueError, match=rf"^{name} must (be a|map names to) .*number"):
                check_ranges(set_field(default, name, other))


@pytest.mark.parametrize("kind", [AlroConfig, BearConfig, BladeConfig, SoftmaxDPOConfig], ids=lambda k: k.__name__)
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("per_device_eval_batch_size", -1, "per_device_eval_batch_size must be at least 1, not -1"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size must be at least 1, not 0"),
        ("num_train_epochs", -2, "num_train_epochs must be at least 0, not -2"),
        ("max_steps", 0, "max_steps must be at least 1, or -1, not 0"),
        ("learning_rate", math.nan, "learning_rate must be at least 0, not nan"),
        ("learning_rate", "fast", "learning_rate must be a number, not 'fast'"),
        ("warmup_steps", [1], r"warmup_steps must be a number, not \[1\]"),
        ("eval_ks", [5, 0], "eval_ks must be at least 1, not 0"),
        ("eval_ks", [], "eval_ks is empty"),
        ("max_users", 0, "max_users must be at least 1, not 0; leave it out to evaluate all users"),
        ("seed", -1, "seed must be from 0 to 4294967295, not -1"),
        ("max_length", 2.5, "max_length must be a whole number, not 2.5"),
    ],
)
def test_a_configuration_of_a_trainer_checks_its_numbers(kind: type[Any], name: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kind("out", **{"use_cpu": True, name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value", "says"),
    [
        (BearConfig, "bear_weight", -1, "bear_weight must be at least 0, not -1"),
        (BearConfig, "tasks", {"item_to_id": -1}, "tasks: item_to_id must be above 0, not -1"),
        (BearConfig, "tasks", '{"item_to_id": 0}', "tasks: item_to_id must be above 0, not 0"),
        (BearConfig, "eval_recall_at", -50, "eval_recall_at must be at least 0, not -50"),
        (BearConfig, "eval_num_beams", -1, "eval_num_beams must be at least 1, not -1"),
        (BearConfig, "eval_length_penalty", math.nan, "eval_length_penalty must be a finite number, not nan"),
        (AlroConfig, "num_candidates", 27, "num_candidates must be from 2 to 26, not 27"),
        (BladeConfig, "rewards", {"ndcg": math.nan}, "rewards: ndcg must be a finite number, not nan"),
        (
            BladeConfig,
            "num_generations",
            1,
            "num_generations must be at least 2, not 1; the advantage of a rollout is relative",
        ),
        (SoftmaxDPOConfig, "beta", 0.0, "beta must be above 0, not 0.0; with 0, the preferences have no effect"),
    ],
)
def test_numbers_of_a_method_are_checked(kind: type[Any], name: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kind("out", **{"use_cpu": True, name: value})


def test_a_stage_reads_numbers_that_yaml_leaves_as_text() -> None:
    stage = PreferenceStage("random", learning_rate="1e-5", num_beams="7")  # type: ignore[arg-type]
    assert (stage.learning_rate, stage.num_beams) == (1e-5, 7)
    with pytest.raises(ValueError, match="learning_rate must be above 0, not inf"):
        PreferenceStage("random", learning_rate="inf")  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [1, np.int32(1), LARGEST, 1.0, Fraction(1, 2), 2**70, np.float32(0.5)])
def test_numbers_of_any_type_are_accepted(number: Any) -> None:
    FINITE.check("x", number)
    if isinstance(number, int | np.integer) and number <= LARGEST:
        COUNT.check("x", number)


@pytest.mark.parametrize(
    ("range", "value", "says"),
    [
        (COUNT, LARGEST + 1, "x must be at most 2147483647, not 2147483648"),
        (COUNT, 2**80, "x must be at most 2147483647, not 1208925819614629174706176"),
        (SEED, 2**32, "x must be from 0 to 4294967295, not 4294967296"),
        (STEPS, -2, "x must be at least 1, or -1, not -2; -1 leaves the number of steps to num_train_epochs"),
        (Range(high=3), 4, "x must be at most 3, not 4"),
        (Range(0, 1, above=True), 0, "x must be above 0 and at most 1, not 0"),
        (Range(0, 1, below=True), 1, "x must be from 0 to below 1, not 1"),
        (replace(COUNT, low=2), 1.5, "x must be a whole number, not 1.5"),
        (FINITE, "3", "x must be a number, not '3'"),
        (FINITE, None, "x must be a number, not None"),
        (FINITE, torch.tensor(1.0), "x must be a number, not tensor"),
    ],
)
def test_a_refusal_names_the_bounds(range: Range, value: object, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        range.check("x", value)
    assert str(refused.value).startswith(says)


def test_every_inherited_range_belongs_to_a_field() -> None:
    """A name in INHERITED that is not a field of any configuration is probably a typo."""
    known = {name for kind in CONFIGURATIONS for name in kind.__dataclass_fields__}
    assert set(INHERITED) <= known
