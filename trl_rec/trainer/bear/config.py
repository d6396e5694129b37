"""Defines the configuration of [`BearTrainer`], which adds options for BEAR to `SFTConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from trl import SFTConfig

from trl_rec.compat import dict_fields
from trl_rec.data.rows import LongHistories
from trl_rec.data.tasks.templates import TASK_NAMES
from trl_rec.ranges import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, SHARE_BELOW_ONE
from trl_rec.trainer.base.config import check_inert, check_sft_options
from trl_rec.trainer.base.prior_config import PriorConfig


@dataclass
class BearConfig(PriorConfig, SFTConfig):
    """Arguments of [`BearTrainer`], in addition to those of [`PriorConfig`] and [`~trl.SFTConfig`].

    The loss is cross-entropy plus the beam term, which depends on whether beam search keeps the target token. With
    `bear_weight=0`, the loss is that of MSL: the cross-entropy over the legal tokens, those that can come next in an
    item. With `bear_weight=0` and `softmax="vocabulary"`, training is plain SFT.

    If `list_length` is set and `targets` is `"last"`, the model learns to write lists of distinct items: the next new
    items (those that the user has not chosen before), in order. The legal tokens are then the same as in decoding:
    items that are already in the list are illegal, and so are items of the history unless `eval_exclude_history` is
    false. The EOS after a list is learned only with `softmax="vocabulary"`.

    Args:
        bear_weight (`float`, *optional*, defaults to `0.6875`): Weight of the beam term, the paper's lambda. A
            weight of 0.25 in the authors' code corresponds to 0.25 x `sharpness` here.
        sharpness (`float`, *optional*, defaults to `2.75`): Divisor of the margin in the beam term, the paper's xi.
            The margin is how far the target's log-probability is above that of the least likely token inside the beam.
        variant (`str`, *optional*, defaults to `"paper"`): The beam term increases the gradient of the cross-entropy.
            With `"paper"`, the increase is larger for targets inside the beam. With `"survival"`, it is larger for
            targets outside the beam.
        num_beams (`int`, *optional*, defaults to `10`): Number of beams in the beam term, the paper's B. Set it to
            the number of beams that decoding uses.
        temperature (`float`, *optional*, defaults to `1.0`): Divisor of the logits in the loss of item tokens. It does
            not apply to targets that are texts, which occur only with `tasks`.
        target_smoothing (`float`, *optional*, defaults to `0.0`): Label smoothing: the share of the target token's
            probability that is spread evenly over all tokens of the softmax. Targets that are texts are not smoothed.
        sampled_items (`int`, *optional*): Number of sampled items that each target is compared with in training,
            instead of all items. Meant for catalogues of many thousands of items. The draws depend only on the seed,
            the epoch and the row, so a resumed run draws the same items. In an evaluation, each target is compared
            with all items. Requires the surface `item_token`, `bear_weight=0` and `softmax="legal"`; cannot be
            combined with `list_length`, `tasks` or `target_smoothing`. In training, the metric `bear/sampled_ce`
            replaces all other metrics `bear/...`.
        sampled_from (`str`, *optional*, defaults to `"uniform"`): Distribution that items are sampled from. With
            `"uniform"`, all items are equally likely. With `"popularity"`, the probability of an item is proportional
            to 1 plus the number of times that the item is a training target. The loss is corrected for either choice.
            Requires `sampled_items`.
        softmax (`str`, *optional*, defaults to `"legal"`): Tokens that the softmax is computed over. `"legal"`: the
            legal tokens, which continue the path of an item. A target token that is the only legal token is then not
            trained. `"vocabulary"`: all tokens. Decoding of single items uses the same softmax. Decoding of lists
            always uses the legal tokens.
        targets (`str`, *optional*, defaults to `"last"`): With `"last"`, there is one row per target, or one row per
            list if `list_length` is set. With `"all"`, there is one row per sequence (a history and all targets after
            it), which trains all targets of the sequence, so the history is read only once. The batch size then counts
            sequences instead of targets. The loss of a target is the same as in a row of its own, unless the history
            of the target exceeds `max_length` or `max_history`. With `list_length`, `"all"` requires item tokens or
            semantic IDs, and earlier items of a row stay legal.
        target_age_decay (`float`, *optional*, defaults to `1.0`): A target followed by `a` newer targets in its row
            has the weight `target_age_decay ** a`. The loss is the weighted mean over the target tokens of all
            accumulated batches and all processes. The metrics `bear/...` are not weighted. Requires `targets="all"`.
        every_position (`bool`, *optional*, defaults to `False`): Whether a list starts at every target that is a new
            item, so that lists overlap. By default, a list starts where the previous list ends. Requires `list_length`
            and `targets="last"`.
        max_history (`int`, *optional*): Maximum number of items before a target. Cannot be used if `list_length` is
            set and `targets` is `"last"`.
        long_histories (`str`, *optional*, defaults to `"windows"`): What happens to targets whose history exceeds
            `max_length` or `max_history`. With `"windows"`, sequences are cut into rows that overlap by half, so the
            history of such a target has between half and all of the items that fit. With `"rows"`, each such target
            gets a row of its own, with the longest history that fits. The number of such targets is logged. Requires
            `targets="all"`.
        max_row_tokens (`int`, *optional*): Maximum number of tokens of a row in which all targets follow the history,
            one branch per target (see [`Branches`]). Rows of titles are of this kind. The limit saves memory, because
            a sequence whose targets need more tokens is divided into several rows. Must be at least `max_length`. By
            default, the only limit is `max_length`, which applies to the history together with one target. Requires
            `targets="all"`.
        join_windows (`bool`, *optional*, defaults to `False`): Whether successive windows of a user are joined into
            one sequence. Meant for sources whose rows are windows (one target and the items before it), such as
            BIGRec's. Requires `targets="all"`.
        tasks (`dict[str, float]`, *optional*): Tasks to train. [`build_training_rows`] builds their rows. Maps each
            task to its number of rows, as a multiple of the number of next-item rows. For example, `next_item: 1.0`
            uses each next-item row once. The tasks are `next_item`, `item_to_id`, `id_to_item`, `history_to_title`,
            `titles_to_id`, `profile_to_user`, `user_to_profile`, `query_to_item` and `history_to_preference`. By
            default, only the next-item task is learned.
        task_cap (`int`, *optional*): Maximum number of rows of each task except `next_item`.
        task_history (`int`, *optional*, defaults to `20`): Maximum number of items in a prompt of each task except
            `next_item`.
    """

    _VALID_DICT_FIELDS = dict_fields(SFTConfig, "tasks")

    bear_weight: Annotated[float, NOT_NEGATIVE] = field(
        default=0.25 * 2.75,
        metadata={"help": "weight of the beam term; 0 turns it off"},
    )
    sharpness: Annotated[float, POSITIVE] = field(
        default=2.75, metadata={"help": "divisor of the margin in the beam term"}
    )
    variant: Literal["paper", "survival"] = field(
        default="paper",
        metadata={"help": "targets that get the larger gradient: those inside the beam (paper) or outside (survival)"},
    )
    num_beams: Annotated[int, COUNT] = field(default=10, metadata={"help": "number of beams in the beam term"})
    temperature: Annotated[float, POSITIVE] = field(
        default=1.0, metadata={"help": "divisor of the logits in the loss"}
    )
    target_smoothing: Annotated[float, SHARE_BELOW_ONE] = field(
        default=0.0,
        metadata={"help": "label smoothing: share of the target's probability spread over all tokens of the softmax"},
    )
    sampled_items: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={"help": "number of sampled items to compare each target with in training; by default, all items"},
    )
    sampled_from: Literal["uniform", "popularity"] = field(
        default="uniform", metadata={"help": "how items are sampled: uniform or popularity; requires sampled_items"}
    )
    softmax: Literal["legal", "vocabulary"] = field(
        default="legal", metadata={"help": "tokens that the softmax is computed over: legal or vocabulary"}
    )
    targets: Literal["last", "all"] = field(
        default="last",
        metadata={"help": "last: one row per target; all: one row per sequence, which trains all of its targets"},
    )
    target_age_decay: Annotated[float, SHARE] = field(
        default=1.0,
        metadata={"help": "factor on the weight of a target for each newer target in its row; requires targets=all"},
    )
    every_position: bool = field(
        default=False,
        metadata={
            "help": "start a list at every target that the user has not chosen before; requires list_length and "
            "targets=last"
        },
    )
    max_history: Annotated[int | None, COUNT] = field(
        default=None, metadata={"help": "maximum number of items before a target"}
    )
    long_histories: LongHistories = field(
        default="windows",
        metadata={
            "help": "how to train targets whose history exceeds max_length or max_history: in rows that overlap by "
            "half (windows), or in a row of their own (rows); requires targets=all"
        },
    )
    max_row_tokens: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "maximum number of tokens of a row in which all targets follow the history, as with titles; "
            "requires targets=all"
        },
    )
    join_windows: bool = field(
        default=False,
        metadata={"help": "join successive windows of a user into one sequence, as for BIGRec; requires targets=all"},
    )
    tasks: Annotated[dict[str, Any] | str | None, POSITIVE] = field(
        default=None,
        metadata={"help": "mapping from tasks to their numbers of rows, as multiples of the number of next-item rows"},
    )
    task_cap: Annotated[int | None, COUNT] = field(
        default=None, metadata={"help": "maximum number of rows of each task except next_item"}
    )
    task_history: Annotated[int, COUNT] = field(
        default=20, metadata={"help": "maximum number of items in a prompt of each task except next_item"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()

        # 1. Refuse options of SFTTrainer that BearTrainer does not support, and options for other kinds of rows.
        check_sft_options(self, "rows are built from whole items and the loss is BEAR's")
        if self.softmax not in ("legal", "vocabulary"):
            raise ValueError(f"softmax must be 'legal' or 'vocabulary', not {self.softmax!r}")
        if self.list_length is not None and self.targets == "last":
            check_inert(self, ("max_history",), "the prompts of lists are limited by max_length")
        else:
            check_inert(
                self,
                ("every_position",),
                "it applies only to rows of lists, which require list_length and targets='last'",
            )
        if self.targets != "all":
            names = ("target_age_decay", "long_histories", "max_row_tokens", "join_windows")
            check_inert(self, names, "it applies only to rows with several targets (targets='all')")

        # 2. Check the other options.
        self._check_rows()
        self._check_tasks()
        self._check_sampling()

    def _check_rows(self) -> None:
        """Raises `ValueError` if the options of rows are invalid."""
        if self.long_histories not in get_args(LongHistories):
            raise ValueError(f"long_histories must be 'windows' or 'rows', not {self.long_histories!r}")
        if self.max_row_tokens is not None and self.max_row_tokens < (self.max_length or self.max_row_tokens):
            raise ValueError(
                f"max_row_tokens={self.max_row_tokens} is below max_length={self.max_length}, so the row of a single "
                "target may not fit; raise max_row_tokens, or lower max_length"
            )

    def _check_sampling(self) -> None:
        """Raises `ValueError` if the options of sampled items are invalid, or cannot be combined with others."""
        if self.sampled_from not in ("uniform", "popularity"):
            raise ValueError(f"sampled_from must be 'uniform' or 'popularity', not {self.sampled_from!r}")
        if self.sampled_items is None:
            return check_inert(self, ("sampled_from",), "it applies only to sampled_items, which is unset")

        # Check that the other options have the values that sampling requires.
        needed = {"bear_weight": 0, "softmax": "legal", "target_smoothing": 0, "list_length": None, "tasks": None}
        reasons = {
            "bear_weight": "the beam term needs the logits of all items; set bear_weight: 0",
            "softmax": "negatives are sampled from the items, not from the vocabulary; set softmax: legal",
            "target_smoothing": "smoothing needs the logits of all items; leave one of the two out",
            "list_length": "the legal items of a list differ by position; leave one of the two out",
            "tasks": "the loss of texts needs the logits of the whole vocabulary; leave one of the two out",
        }
        for name, value in needed.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"sampled_items cannot be combined with {name}={getattr(self, name)!r}, because {reasons[name]}"
                )

    def _check_tasks(self) -> None:
        """Raises `ValueError` if the options of tasks are invalid, or cannot be combined with others."""
        if self.tasks is None:
            return check_inert(self, ("task_cap", "task_history"), "it applies only to tasks, which is unset")

        # Check the combination with lists, and then the mapping.
        if self.list_length is not None:
            raise ValueError(
                "tasks and list_length cannot be combined, because no task has a list as its answer; leave one of the "
                "two out"
            )
        if not isinstance(self.tasks, dict) or not self.tasks:
            raise ValueError(
                f"tasks must map names to numbers, as in {{'next_item': 1.0, 'item_to_id': 0.5}}, not {self.tasks!r}"
            )
        for name in self.tasks:
            if name not in TASK_NAMES:
                raise ValueError(f"there is no task {name!r}; the tasks are {', '.join(TASK_NAMES)}")
