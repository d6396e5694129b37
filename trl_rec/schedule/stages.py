"""A stage of preference training as data: where its negatives come from, how hard they are, and how it is trained."""

from __future__ import annotations

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


@dataclass(frozen=True)
class PreferenceStage:
    """One stage of a schedule.

    Args:
        source (`str`): `"self_play"`: the policy's own beams. `"feedback"`: items the user rated worse. `"random"`: any.
        difficulty (`str`, *optional*): `"easy"`, `"medium"`, `"hard"` or `"any"` of `self_play`, `"easy"` (disliked) or
            `"hard"` (neutral) of `feedback`; the source's last one otherwise.
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
    """The five stages of Align³GR, from the policy's easy beams to feedback that is hard to tell apart; `shared` goes to
    each."""
    steps = [("self_play", "easy"), ("self_play", "medium"), ("self_play", "hard"), ("feedback", "easy"), ("feedback", "hard")]
    return [PreferenceStage(source, difficulty, **shared) for source, difficulty in steps]


def read_stages(entries: Iterable[Mapping[str, Any]]) -> list[PreferenceStage]:
    """Stages from a recipe's list; a key that no stage has is refused."""
    known, stages = {field.name for field in fields(PreferenceStage)}, []
    for number, entry in enumerate(entries, 1):
        if unknown := set(entry) - known:
            raise ValueError(f"stage {number}: there is no key {min(unknown)!r}; a stage has {', '.join(sorted(known))}")
        if "source" not in entry:
            raise ValueError(f"stage {number} has no source; choose one of {', '.join(SOURCES)}")
        cuts = {name: tuple(entry[name]) for name in ("liked", "neutral", "disliked") if name in entry}
        stages.append(PreferenceStage(**{**entry, **cuts}))
    if not stages:
        raise ValueError("the schedule has no stages; list at least one")
    return stages
