"""Configuration of [`BearTrainer`]: `SFTConfig` with the options of BEAR."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from trl import SFTConfig

from trl_rec.compat import dict_fields
from trl_rec.data.tasks.templates import TASK_NAMES
from trl_rec.ranges import COUNT, NOT_NEGATIVE, POSITIVE
from trl_rec.trainer.base.config import RecConfig, check_inert, check_sft_options


@dataclass
class BearConfig(RecConfig, SFTConfig):
    """Arguments of [`BearTrainer`], besides those of [`RecConfig`] and [`~trl.SFTConfig`].

    `bear_weight=0` is MSL, cross-entropy over the legal tokens. With `softmax="vocabulary"` as well it is plain SFT.

    With a `list_length` the model learns to write lists of distinct items: the user's next items, in order. Legal
    tokens are then those that are legal when lists are drawn: items already in the list are left out and, unless
    `eval_exclude_history` is off, items of the history. The EOS after a whole list is learned only with
    `softmax="vocabulary"`.

    Args:
        bear_weight (`float`, *optional*, defaults to `0.6875`): Weight of the beam term, the paper's lambda. A
            weight of 0.25 in the authors' code is 0.25 x `sharpness` here.
        sharpness (`float`, *optional*, defaults to `2.75`): The paper's xi, the unit of the margin.
        variant (`str`, *optional*, defaults to `"paper"`): `"paper"` gives the larger gradient to targets
            that are inside the beam, `"survival"` to targets that are outside.
        num_beams (`int`, *optional*, defaults to `10`): Beam width to survive, the paper's B.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits in the loss.
        softmax (`str`, *optional*, defaults to `"legal"`): Softmax over the tokens that continue an item, or over the
            `"vocabulary"`. Decoding follows it.
        targets (`str`, *optional*, defaults to `"last"`): `"last"`: one row per target, or with a `list_length` one
            row per list. `"all"`: one row per sequence with every item a target, for item tokens and semantic IDs.
            With a `list_length` such a row is one long list, but earlier items stay legal in it.
        every_position (`bool`, *optional*, defaults to `False`): With a `list_length`: whether a list begins at every
            target of a sequence, rather than where the list before it ends.
        max_history (`int`, *optional*): Most items before a target, with `targets="last"` and no `list_length`.
        tasks (`dict[str, float]`, *optional*): Tasks to learn, for [`build_training_rows`]. Each value is a task's
            number of rows, divided by the number of rows of the next item. The tasks are `next_item` (1.0 takes all
            of its rows), `item_to_id`, `id_to_item`, `history_to_title`, `titles_to_id`, `profile_to_user`,
            `user_to_profile`, `query_to_item` and `history_to_preference`. By default the next item alone.
        task_cap (`int`, *optional*): Most rows of any task but the next item.
        task_history (`int`, *optional*, defaults to `20`): Most items in a prompt of these other tasks.
    """

    _VALID_DICT_FIELDS = dict_fields(SFTConfig, "tasks")

    bear_weight: Annotated[float, NOT_NEGATIVE] = field(
        default=0.25 * 2.75,
        metadata={"help": "weight of the beam term; 0: cross-entropy alone"},
    )
    sharpness: Annotated[float, POSITIVE] = field(default=2.75, metadata={"help": "unit of the margin"})
    variant: Literal["paper", "survival"] = field(default="paper", metadata={"help": "paper or survival"})
    num_beams: Annotated[int, COUNT] = field(default=10, metadata={"help": "beam width to survive"})
    temperature: Annotated[float, POSITIVE] = field(default=1.0, metadata={"help": "divides the logits in the loss"})
    softmax: Literal["legal", "vocabulary"] = field(
        default="legal", metadata={"help": "softmax over legal tokens or over the vocabulary"}
    )
    targets: Literal["last", "all"] = field(
        default="last", metadata={"help": "last: one row per target; all: every item of a row is a target"}
    )
    every_position: bool = field(default=False, metadata={"help": "with list_length: a list begins at every target"})
    max_history: Annotated[int | None, COUNT] = field(default=None, metadata={"help": "most items before a target"})
    tasks: Annotated[dict[str, Any] | str | None, POSITIVE] = field(
        default=None,
        metadata={"help": "rows of each task, as a multiple of the rows of the next item"},
    )
    task_cap: Annotated[int | None, COUNT] = field(
        default=None, metadata={"help": "most rows of any task but the next item"}
    )
    task_history: Annotated[int, COUNT] = field(
        default=20, metadata={"help": "most items in a prompt of the other tasks"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()

        # Options of SFTTrainer, and of other forms of rows, that would silently do nothing.
        check_sft_options(self, "rows are built from whole items and the loss is BEAR's")
        if self.softmax not in ("legal", "vocabulary"):
            raise ValueError(f"softmax must be 'legal' or 'vocabulary', not {self.softmax!r}")
        if self.list_length is not None and self.targets == "last":
            check_inert(self, ("max_history",), "prompts of lists are bounded by max_length")
        else:
            check_inert(self, ("every_position",), "it is for rows of lists, made with list_length and targets='last'")
        self._check_tasks()

    def _check_tasks(self) -> None:
        if self.tasks is None:
            return check_inert(
                self, ("task_cap", "task_history"), "there are no tasks but the next item; name them in tasks"
            )

        if self.list_length is not None:
            raise ValueError("tasks are about single items, so they have no list_length; leave one of the two out")
        if not isinstance(self.tasks, dict) or not self.tasks:
            raise ValueError(
                f"tasks must map names to numbers, as in {{'next_item': 1.0, 'item_to_id': 0.5}}, not {self.tasks!r}"
            )
        for name in self.tasks:
            if name not in TASK_NAMES:
                raise ValueError(f"there is no task {name!r}; the tasks are {', '.join(TASK_NAMES)}")
