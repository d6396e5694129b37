"""Defines the settings of a preference stage: the source and difficulty of its negatives, and training options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from trl_rec.ranges import COUNT, FINITE, NOT_NEGATIVE, POSITIVE, STEPS, check_ranges


# Maps each source to its difficulties. The last difficulty is the default.
SOURCES = {
    "self_play": ("easy", "medium", "hard", "any"),
    "feedback": ("easy", "hard"),
    "random": ("any",),
}

# Fields that override the trainer's configuration in a stage, unless they are None.
TRAINING = ("learning_rate", "num_train_epochs", "max_steps", "beta", "sft_weight")

# Fields by the type of their values. The remaining fields are numbers that need not be whole.
WORDS = ("source", "difficulty")
RATING_RANGES = ("liked", "neutral", "disliked")
COUNTS = ("num_negatives", "max_prompts", "num_beams", "max_steps")


@dataclass(frozen=True)
class PreferenceStage:
    """One stage of preference training.

    Args:
        source (`str`): Where negatives come from: `"self_play"` (the policy's own beams), `"feedback"` (items that the
            user rated lower) or `"random"` (random items).
        difficulty (`str`, *optional*): For `self_play`, how hard the negatives are to distinguish from the target:
            `"easy"`, `"medium"`, `"hard"` (see `difficulty.py`) or `"any"`. For `feedback`, `"easy"` (disliked items)
            or `"hard"` (neutral items). For `random`, only `"any"`. Defaults to `"hard"` for `feedback`, and to
            `"any"` otherwise.
        num_negatives (`int`, *optional*, defaults to `20`): Maximum number of negatives per prompt.
        max_prompts (`int`, *optional*): Maximum number of prompts. There is one possible prompt per training target
            (for `feedback`, per liked target), and the prompts are sampled uniformly from these. Defaults to all.
        num_beams (`int`, *optional*, defaults to `40`): Number of beams per prompt in self-play.
        liked (`tuple`, *optional*, defaults to `(5, 5)`): Lowest and highest rating of a liked item.
        neutral (`tuple`, *optional*, defaults to `(3, 4)`): Lowest and highest rating of a neutral item.
        disliked (`tuple`, *optional*, defaults to `(1, 2)`): Lowest and highest rating of a disliked item.
        learning_rate, num_train_epochs, max_steps, beta, sft_weight (*optional*): Override the values of the trainer's
            configuration in this stage.
    """

    source: str
    difficulty: str = ""
    num_negatives: Annotated[int, COUNT] = 20
    max_prompts: Annotated[int | None, COUNT] = None
    num_beams: Annotated[int, COUNT] = 40
    liked: Annotated[tuple[float, float], FINITE] = (5, 5)
    neutral: Annotated[tuple[float, float], FINITE] = (3, 4)
    disliked: Annotated[tuple[float, float], FINITE] = (1, 2)
    learning_rate: Annotated[float | None, POSITIVE] = None
    num_train_epochs: Annotated[float | None, POSITIVE] = None
    max_steps: Annotated[int | None, STEPS] = None
    beta: Annotated[float | None, POSITIVE] = None
    sft_weight: Annotated[float | None, NOT_NEGATIVE] = None

    def __post_init__(self) -> None:
        # 1. Convert numeric texts, and check the numbers.
        for name, value in vars(self).items():
            object.__setattr__(self, name, _read_field(name, value))  # the class is frozen
        check_ranges(self)
        for name in RATING_RANGES:
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(
                    f"{name} must be a lowest and a highest rating, such as [4, 5], not [{low:g}, {high:g}]"
                )

        # 2. Check the source, and whether it has this difficulty.
        if self.source not in SOURCES:
            raise ValueError(f"unknown source {self.source!r} of a stage; choose one of {', '.join(SOURCES)}")
        difficulties = SOURCES[self.source]
        if not self.difficulty:
            object.__setattr__(self, "difficulty", difficulties[-1])
        if self.difficulty not in difficulties:
            raise ValueError(
                f"the difficulty of {self.source} negatives must be one of {', '.join(difficulties)}, not "
                f"{self.difficulty!r}"
            )

    @property
    def name(self) -> str:
        """A short name for messages and for the folder of the stage, such as `self_play-easy`."""
        return f"{self.source}-{self.difficulty}"

    @property
    def training(self) -> dict[str, Any]:
        """The values that override the trainer's configuration."""
        return {name: value for name, value in asdict(self).items() if name in TRAINING and value is not None}


def align3gr_stages(**shared: Any) -> list[PreferenceStage]:
    """Returns the five stages of Align³GR, from easy self-play to hard feedback.

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
    """Reads the stages of a recipe. Raises `ValueError` for unknown keys and for an empty list."""
    known = {one.name for one in fields(PreferenceStage)}
    stages = []
    for number, entry in enumerate(entries, 1):
        # 1. Check the keys.
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"stage {number} must be a mapping with a source, such as {{source: self_play}}, not {entry!r}"
            )
        if unknown := set(entry) - known:
            raise ValueError(
                f"stage {number} has the unknown key {min(unknown, key=str)!r}; the keys are "
                f"{', '.join(sorted(known))}"
            )
        if "source" not in entry:
            raise ValueError(f"stage {number} has no source; choose one of {', '.join(SOURCES)}")

        # 2. Make the stage, which checks the values.
        try:
            stages.append(PreferenceStage(**entry))
        except ValueError as error:
            raise ValueError(f"stage {number}: {error}") from error

    if not stages:
        raise ValueError("the schedule has no stages; list at least one")
    return stages


def _read_field(name: str, value: Any) -> Any:
    """Returns the value of a field, with numeric texts converted to numbers, because YAML 1.1 reads `1e-5` as text.

    Raises `ValueError` if a field of `WORDS` is not a string, or if a range of ratings is not a pair.
    """
    if name in WORDS:
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a string, not {value!r}")
        return value
    if name in RATING_RANGES:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError(f"{name} must be a lowest and a highest rating, such as [4, 5], not {value!r}")
        return tuple(_number(rating, whole=False) for rating in value)
    return _number(value, whole=name in COUNTS)


def _number(value: Any, *, whole: bool) -> Any:
    """Converts a number or numeric text to `int` or `float`, and returns any other value unchanged."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return value
    return int(number) if whole and number.is_integer() else number
