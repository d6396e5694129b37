"""One stage of preference training, as data: the source and difficulty of its negatives, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


# The difficulties of each source; the last one is its default.
SOURCES = {
    "self_play": ("easy", "medium", "hard", "any"),
    "feedback": ("easy", "hard"),
    "random": ("any",),
}

# Fields that replace the trainer's configuration in this stage; None keeps the configuration's value.
TRAINING = ("learning_rate", "num_train_epochs", "max_steps", "beta", "sft_weight")

# How fields are checked; those that are not listed are positive numbers.
WORDS = ("source", "difficulty")
RATING_RANGES = ("liked", "neutral", "disliked")
COUNTS = ("num_negatives", "max_prompts", "num_beams", "max_steps")
OPTIONAL = ("max_prompts", *TRAINING)


@dataclass(frozen=True)
class PreferenceStage:
    """One stage of a schedule.

    Args:
        source (`str`): Where negatives come from: `"self_play"` (the policy's own beams), `"feedback"` (items that the
            user rated lower) or `"random"` (any items).
        difficulty (`str`, *optional*): `"easy"`, `"medium"`, `"hard"` or `"any"` for `self_play`; `"easy"` (disliked
            items) or `"hard"` (neutral items) for `feedback`. Defaults to the last one of its source.
        num_negatives (`int`, *optional*, defaults to `20`): Most negatives per prompt.
        max_prompts (`int`, *optional*): Number of prompts, drawn evenly from all training prefixes. Defaults to all.
        num_beams (`int`, *optional*, defaults to `40`): Width of the beam search that self-play negatives come from.
        liked (`tuple`, *optional*, defaults to `(5, 5)`): Lowest and highest rating of an item that the user liked.
        neutral (`tuple`, *optional*, defaults to `(3, 4)`): The same for a neutral item.
        disliked (`tuple`, *optional*, defaults to `(1, 2)`): The same for a disliked item.
        learning_rate, num_train_epochs, max_steps, beta, sft_weight (*optional*): Replace the values of the trainer's
            configuration in this stage.
    """

    source: str
    difficulty: str = ""
    num_negatives: int = 20
    max_prompts: int | None = None
    num_beams: int = 40
    liked: tuple[float, float] = (5, 5)
    neutral: tuple[float, float] = (3, 4)
    disliked: tuple[float, float] = (1, 2)
    learning_rate: float | None = None
    num_train_epochs: float | None = None
    max_steps: int | None = None
    beta: float | None = None
    sft_weight: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, _check_field(name, value))  # the class is frozen

        if self.source not in SOURCES:
            raise ValueError(f"unknown source {self.source!r} of a stage; choose one of {', '.join(SOURCES)}")

        difficulties = SOURCES[self.source]
        if not self.difficulty:
            object.__setattr__(self, "difficulty", difficulties[-1])
        if self.difficulty not in difficulties:
            raise ValueError(f"{self.source} negatives are {', '.join(difficulties)}, not {self.difficulty!r}")

    @property
    def name(self) -> str:
        """A short name that can be a folder's: `self_play-easy`."""
        return f"{self.source}-{self.difficulty}"

    @property
    def training(self) -> dict[str, Any]:
        """The values that replace the trainer's configuration."""
        return {name: value for name, value in asdict(self).items() if name in TRAINING and value is not None}


def align3gr_stages(**shared: Any) -> list[PreferenceStage]:
    """The five stages of Align³GR, from easy self-play to hard feedback.

    Args:
        shared: Fields of [`PreferenceStage`] for every stage.
    """
    order = [
        ("self_play", "easy"),
        ("self_play", "medium"),
        ("self_play", "hard"),
        ("feedback", "easy"),
        ("feedback", "hard"),
    ]
    return [PreferenceStage(source, difficulty, **shared) for source, difficulty in order]


def read_stages(entries: Iterable[Mapping[str, Any]]) -> list[PreferenceStage]:
    """The stages of a recipe's list; raises on keys that a stage does not have, and on an empty list."""
    known = {field.name for field in fields(PreferenceStage)}
    stages = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"stage {number} is {entry!r}; write a mapping with a source, such as {{source: self_play}}"
            )
        if unknown := set(entry) - known:
            raise ValueError(
                f"stage {number}: there is no key {min(unknown, key=str)!r}; a stage has {', '.join(sorted(known))}"
            )
        if "source" not in entry:
            raise ValueError(f"stage {number} has no source; choose one of {', '.join(SOURCES)}")

        try:
            stages.append(PreferenceStage(**entry))
        except ValueError as error:
            raise ValueError(f"stage {number}: {error}") from error

    if not stages:
        raise ValueError("the schedule has no stages; list at least one")
    return stages


def _check_field(name: str, value: Any) -> Any:
    """Converts the value of a stage's field to the field's type; raises if that is impossible.

    Numbers may be text, because YAML 1.1 reads `1e-5` as text.
    """
    if value is None and name in OPTIONAL:
        return None
    if name in WORDS:
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a word, not {value!r}")
        return value
    if name in RATING_RANGES:
        return _check_rating_range(name, value)

    number = _number(value)
    if math.isnan(number):
        raise ValueError(f"{name} must be a number, not {value!r}")
    if name in COUNTS:
        is_unlimited = name == "max_steps" and number == -1  # transformers' "as many as the epochs have"
        if not number.is_integer() or (number < 1 and not is_unlimited):
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        return int(number)

    may_be_zero = name == "sft_weight"
    if number < 0 or (number == 0 and not may_be_zero):
        raise ValueError(f"{name} must be {'at least' if may_be_zero else 'above'} 0, not {value!r}")
    return number


def _check_rating_range(name: str, value: Any) -> tuple[float, float]:
    ratings = [_number(rating) for rating in value] if isinstance(value, list | tuple) else []
    if any(math.isnan(rating) for rating in ratings):
        raise ValueError(f"{name} must contain finite numbers, not {value!r}")
    if len(ratings) != 2 or ratings[0] > ratings[1]:
        raise ValueError(f"{name} must be a lowest and a highest rating, such as [4, 5], not {value!r}")
    return ratings[0], ratings[1]


def _number(value: Any) -> float:
    """A finite number from a number or a text; NaN for anything else, True and False included."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan
