"""A stage of preference training as data: where its negatives come from, how hard they are, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


SOURCES = {
    "self_play": ("easy", "medium", "hard", "any"),
    "feedback": ("easy", "hard"),
    "random": ("any",),
}
# What a stage says of training; what it leaves out is as the trainer's configuration has it.
TRAINING = ("learning_rate", "num_train_epochs", "max_steps", "beta", "sft_weight")
NAMES, CUTS = ("source", "difficulty"), ("liked", "neutral", "disliked")
COUNTS = ("num_negatives", "max_prompts", "num_beams", "max_steps")
OPTIONAL = ("max_prompts", *TRAINING)


@dataclass(frozen=True)
class PreferenceStage:
    """One stage of a schedule.

    Args:
        source (`str`): `"self_play"`: the policy's own beams. `"feedback"`: items the user rated worse. `"random"`:
            any.
        difficulty (`str`, *optional*): `"easy"`, `"medium"`, `"hard"` or `"any"` of `self_play`, `"easy"` (disliked)
            or `"hard"` (neutral) of `feedback`; the source's last one otherwise.
        num_negatives (`int`, *optional*, defaults to `20`): Most negatives of a prompt.
        max_prompts (`int`, *optional*): Prompts, drawn evenly over all training prefixes; all of them otherwise.
        num_beams (`int`, *optional*, defaults to `40`): Width of the beam search that negatives come from.
        liked, neutral, disliked (`tuple`, *optional*): Lowest and highest rating that counts as such.
        learning_rate, num_train_epochs, max_steps, beta, sft_weight (*optional*): In place of the configuration's.
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
            object.__setattr__(self, name, _checked(name, value))
        if self.source not in SOURCES:
            raise ValueError(f"unknown source {self.source!r} of a stage; choose one of {', '.join(SOURCES)}")
        if not self.difficulty:
            object.__setattr__(self, "difficulty", SOURCES[self.source][-1])
        if self.difficulty not in SOURCES[self.source]:
            known = ", ".join(SOURCES[self.source])
            raise ValueError(f"{self.source} negatives are {known}, not {self.difficulty!r}")

    @property
    def name(self) -> str:
        """Short and fit for a folder: `self_play-easy`."""
        return f"{self.source}-{self.difficulty}"

    @property
    def training(self) -> dict[str, Any]:
        """What replaces the trainer's configuration."""
        return {name: value for name, value in asdict(self).items() if name in TRAINING and value is not None}


def align3gr_stages(**shared: Any) -> list[PreferenceStage]:
    """The five stages of Align³GR, from the policy's easy beams to feedback that is hard to tell apart; `shared` goes
    to each."""
    steps = [
        ("self_play", "easy"),
        ("self_play", "medium"),
        ("self_play", "hard"),
        ("feedback", "easy"),
        ("feedback", "hard"),
    ]
    return [PreferenceStage(source, difficulty, **shared) for source, difficulty in steps]


def read_stages(entries: Iterable[Mapping[str, Any]]) -> list[PreferenceStage]:
    """Stages from a recipe's list; a key that no stage has is refused."""
    known, stages = {field.name for field in fields(PreferenceStage)}, []
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


def _checked(name: str, value: Any) -> Any:
    """A field's value as its type; numbers may be text, as YAML 1.1 reads `1e-5` as such."""
    if value is None and name in OPTIONAL:
        return None
    if name in NAMES:
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a word, not {value!r}")
        return value
    if name in CUTS:
        pair = list(value) if isinstance(value, list | tuple) else []
        cut = tuple(_number(name, part) for part in pair)
        if len(cut) != 2 or cut[0] > cut[1]:
            raise ValueError(f"{name} must be a lowest and a highest rating, such as [4, 5], not {value!r}")
        return cut
    number = _number(name, value)
    if name in COUNTS:
        if not number.is_integer() or number < 1 and not (name == "max_steps" and number == -1):
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        return int(number)
    if number < 0 or number == 0 and name != "sft_weight":
        raise ValueError(f"{name} must be {'at least' if name == 'sft_weight' else 'above'} 0, not {value!r}")
    return number


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{name} must be of finite numbers, not {value!r}"
            if name in CUTS
            else f"{name} must be a number, not {value!r}"
        )
    return number
