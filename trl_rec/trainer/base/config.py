"""What all configs of this package share: how prompts are written, and how lists are ranked and measured during
training."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from trl_rec.compat import settle_checkpointing


@dataclass
class RecConfig:
    """Fields that the recommendation trainers add to TRL's configs.

    Args:
        prompt_head (`str`, *optional*): Text before the history; the surface's default otherwise. It may hold
            `{user}`, in whose place the user's semantic ID comes.
        prompt_item (`str`, *optional*): Text of an item in the history, with `{surface}` in it.
        prompt_tail (`str`, *optional*): Text between the history and the completion.
        chat_template (`bool`, *optional*, defaults to `False`): Whether the prompt is a turn in the tokenizer's chat
            template.
        list_length (`int`, *optional*): Items of a list that the model writes; none: it ranks single items.
        eval_ks (`list[int]`, *optional*, defaults to `[1, 5, 10]`): Lengths that ranked lists are cut at; none is
            above a `list_length`.
        eval_num_beams (`int`, *optional*): Beam width when ranking; the largest of `eval_ks` otherwise, and 1 with a
            `list_length`: the likeliest token each time.
        eval_exclude_history (`bool`, *optional*, defaults to `True`): Whether a user's own history is never
            recommended.
        eval_length_penalty (`float`, *optional*, defaults to `0.0`): Scores are divided by length to this power.
        max_users (`int`, *optional*): Users of a split that an evaluation measures, in loss and lists, spread evenly;
            all otherwise.
        activation_checkpointing (`bool`, *optional*): As in `TrainingArguments`, which has it from transformers 5.23
            on; `True` otherwise, as in TRL.
        activation_checkpointing_kwargs (`dict`, *optional*): As in `TrainingArguments`.
    """

    prompt_head: str | None = field(default=None, metadata={"help": "text before the history, perhaps with {user}"})
    prompt_item: str | None = field(default=None, metadata={"help": "text of an item in the history, with {surface}"})
    prompt_tail: str | None = field(default=None, metadata={"help": "text between the history and the completion"})
    chat_template: bool = field(default=False, metadata={"help": "put the prompt into the tokenizer's chat template"})
    list_length: int | None = field(
        default=None, metadata={"help": "items of a list that the model writes; none: it ranks single items"}
    )
    eval_ks: list[int] = field(default_factory=lambda: [1, 5, 10], metadata={"help": "lengths that lists are cut at"})
    eval_num_beams: int | None = field(default=None, metadata={"help": "beam width when ranking"})
    eval_exclude_history: bool = field(default=True, metadata={"help": "never recommend the user's own history"})
    eval_length_penalty: float = field(default=0.0, metadata={"help": "divide scores by length to this power"})
    max_users: int | None = field(default=None, metadata={"help": "users of a split that an evaluation measures"})
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "recompute activations in the backward pass rather than keep them"}
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "what recomputation is told, such as every_n_layers"}
    )

    def __post_init__(self) -> None:
        settle_checkpointing(self)
        super().__post_init__()  # type: ignore[misc]  # of the TRL config that comes after
        if min(self.eval_ks, default=0) < 1:
            raise ValueError(f"eval_ks={self.eval_ks} must hold a length to cut lists at, and none below 1")
        if self.max_users is not None and self.max_users < 1:
            raise ValueError(f"max_users must be at least 1, not {self.max_users}; leave it out to measure all users")
        if self.list_length is None:
            return
        check_inert(self, ("eval_length_penalty",), "the model's lists are all of list_length items")
        if max(self.eval_ks) > self.list_length:
            raise ValueError(f"eval_ks={self.eval_ks} goes beyond list_length={self.list_length}; lower eval_ks")

    @property
    def prompt_options(self) -> dict[str, Any]:
        """The options of [`PromptFormat.for_catalog`]."""
        names = ("prompt_head", "prompt_item", "prompt_tail", "chat_template", "list_length")
        return {name: getattr(self, name) for name in names}


def check_inert(config: Any, names: tuple[str, ...], why: str) -> None:
    """Refuses options that the parent would act on and this trainer does not, where they differ from their default."""
    defaults = {
        one.name: one.default if one.default_factory is MISSING else one.default_factory() for one in fields(config)
    }
    for name in names:
        if getattr(config, name) != defaults[name]:
            given = f"{type(config).__name__}: {name}={getattr(config, name)!r}"
            raise ValueError(f"{given} has no effect here, since {why}; leave it out")
