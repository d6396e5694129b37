"""Config fields that all trainers share: how prompts are written, and how lists are ranked and measured."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from trl_rec.compat import settle_checkpointing


if TYPE_CHECKING:
    from transformers import TrainingArguments as Base
else:
    Base = object


# Options of TRL's trainers that have no effect in ours: of SFTTrainer's rows and losses, of DPOTrainer's losses, and
# of its rows.
INERT_SFT = (
    "loss_type",
    "packing",
    "packing_strategy",
    "eval_packing",
    "padding_free",
    "assistant_only_loss",
    "completion_only_loss",
    "label_smoothing_factor",
    "dataset_text_field",
    "dataset_kwargs",
    "shuffle_dataset",
    "truncation_mode",
    "pad_token",
)
# Options by which SFTTrainer changes the tokenizer, after the catalogue has been tokenized.
TOKENIZER_OPTIONS = ("eos_token", "chat_template_path")
INERT_DPO = (
    "loss_type",
    "loss_weights",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "label_smoothing",
    "label_smoothing_factor",
    "use_weighting",
    "discopop_tau",
    "router_aux_loss_coef",
)
INERT_DPO_ROWS = ("padding_free", "truncation_mode", "pad_token")


@dataclass
class RecConfig(Base):
    """Fields that the recommendation trainers add to TRL's configs.

    Args:
        prompt_head (`str`, *optional*): Text before the history; the surface's default otherwise. It may hold
            `{user}`, in whose place the user's semantic ID comes.
        prompt_item (`str`, *optional*): Text of an item in the history, with `{surface}` in it.
        prompt_tail (`str`, *optional*): Text between the history and the completion.
        chat_template (`bool`, *optional*, defaults to `False`): Whether the prompt is a turn in the tokenizer's chat
            template.
        list_length (`int`, *optional*): Items per list that the model writes. Without it it ranks single items.
        eval_ks (`list[int]`, *optional*, defaults to `[1, 5, 10]`): Lengths at which ranked lists are cut, none above
            `list_length`.
        eval_num_beams (`int`, *optional*): Beam width when ranking. By default the largest of `eval_ks`, and 1 with a
            `list_length`, which takes the likeliest token each time.
        eval_exclude_history (`bool`, *optional*, defaults to `True`): Whether a user's own history is never
            recommended.
        eval_length_penalty (`float`, *optional*, defaults to `0.0`): Scores are divided by length to this power.
        max_users (`int`, *optional*): Most users of a split that an evaluation measures, in loss and lists, spread
            evenly over the split. By default all.
        activation_checkpointing (`bool`, *optional*): As in `TrainingArguments`, which has it from transformers 5.23
            on; `True` otherwise, as in TRL.
        activation_checkpointing_kwargs (`dict`, *optional*): As in `TrainingArguments`.
    """

    prompt_head: str | None = field(default=None, metadata={"help": "text before the history, perhaps with {user}"})
    prompt_item: str | None = field(default=None, metadata={"help": "text of an item in the history, with {surface}"})
    prompt_tail: str | None = field(default=None, metadata={"help": "text between the history and the completion"})
    chat_template: bool = field(default=False, metadata={"help": "put the prompt into the tokenizer's chat template"})
    list_length: int | None = field(
        default=None, metadata={"help": "items per list that the model writes; without it, it ranks single items"}
    )
    eval_ks: list[int] = field(default_factory=lambda: [1, 5, 10], metadata={"help": "lengths at which lists are cut"})
    eval_num_beams: int | None = field(default=None, metadata={"help": "beam width when ranking"})
    eval_exclude_history: bool = field(default=True, metadata={"help": "never recommend the user's own history"})
    eval_length_penalty: float = field(default=0.0, metadata={"help": "divide scores by length to this power"})
    max_users: int | None = field(default=None, metadata={"help": "most users of a split that an evaluation measures"})
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "recompute activations in the backward pass rather than keep them"}
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "options of the recomputation, such as every_n_layers"}
    )

    def __post_init__(self) -> None:
        settle_checkpointing(self)
        super().__post_init__()  # type: ignore[no-untyped-call]  # that of the TRL config after this one among the bases
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


def check_inert(config: RecConfig, names: tuple[str, ...], why: str) -> None:
    """Refuses options that differ from their default, where TRL's trainer would act on them and this one does not."""
    options = {option.name: option for option in fields(config)}
    for name in names:
        option = options[name]
        default = option.default if option.default_factory is MISSING else option.default_factory()
        if getattr(config, name) != default:
            given = f"{type(config).__name__}: {name}={getattr(config, name)!r}"
            raise ValueError(f"{given} has no effect here, since {why}; leave it out")


def check_sft_options(config: RecConfig, why: str) -> None:
    """Refuses options of SFTTrainer that have no effect here, or that would take effect too late."""
    check_inert(config, INERT_SFT, why)
    for name in TOKENIZER_OPTIONS:
        if getattr(config, name) is not None:
            raise ValueError(
                f"{type(config).__name__}: {name}={getattr(config, name)!r} would change the tokenizer after the "
                "catalogue has been tokenized; change the tokenizer yourself, and pass it as processing_class"
            )


def check_padding(config: RecConfig, given: int | str | None) -> None:
    """Refuses a `pad_to_multiple_of` that was `given`. TRL's configs replace "auto" by a number that suits the device,
    so the given value has to be read before their `__post_init__`."""
    if given not in ("auto", "none", None):
        raise ValueError(f"{type(config).__name__}: pad_to_multiple_of={given!r} has no effect here; leave it out")
