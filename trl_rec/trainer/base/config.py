"""Defines the config fields that all trainers share, mainly for prompts and for evaluation."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from trl_rec.compat import settle_checkpointing, skip_deepspeed_compilation
from trl_rec.ranges import COUNT, COUNT_FROM_0, FINITE, NOT_NEGATIVE, check_ranges
from trl_rec.trainer.base.saving.recipe import given_values


if TYPE_CHECKING:
    from transformers import TrainingArguments as Base
else:
    Base = object


# Options of TRL's trainers that have no effect in our trainers. INERT_SFT lists options for the rows and losses of
# SFTTrainer, INERT_DPO options for the losses of DPOTrainer, and INERT_DPO_ROWS options for the rows of DPOTrainer.
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
# Options that make SFTTrainer change the tokenizer. By then, the catalogue has already been tokenized.
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
)
INERT_DPO_ROWS = ("padding_free", "truncation_mode", "pad_token")
FinalSplit = Literal["test", "validation", "none"]


@dataclass
class RecConfig(Base):
    """Fields that the recommendation trainers add to TRL's configs.

    Args:
        prompt_head (`str`, *optional*): Text before the history. It may contain `{user}`, which is replaced by the
            user's semantic ID. This field and the next two default to texts that suit the catalogue's surface, that
            is, the way in which items are written in prompts.
        prompt_item (`str`, *optional*): Text of each item in the history. It contains `{surface}`, which is replaced
            by the item's surface.
        prompt_tail (`str`, *optional*): Text between the history and the completion.
        prompt_separator (`str`, *optional*): Text before every item of the history except the first. By default, there
            is none.
        chat_template (`bool`, *optional*, defaults to `False`): Whether the prompt is formatted with the
            tokenizer's chat template, as a message with the role `user`.
        list_length (`int`, *optional*): Number of items in each list that the model writes. By default, the model
            writes single items.
        eval_ks (`list[int]`, *optional*, defaults to `[1, 5, 10]`): The cutoffs k of the ranking metrics. If
            `list_length` is set, no cutoff may exceed it.
        eval_recall_at (`int`, *optional*, defaults to `50`): An additional cutoff for the table at the end of a run.
            Only recall is computed at this cutoff. Computing it takes a second pass over the users, with as many beams
            as the cutoff, unless every item is a single token or `eval_num_beams` is at least the cutoff. The second
            pass does not affect the other metrics. This recall is skipped if the cutoff is 0, if it does not exceed
            the largest of `eval_ks`, if the catalogue has no more items than the cutoff, or if `list_length` is set.
        eval_num_beams (`int`, *optional*): Beam width when ranking. If `list_length` is set, defaults to 1 (greedy
            decoding). Otherwise, defaults to the largest of `eval_ks`.
        eval_exclude_history (`bool`, *optional*, defaults to `True`): Whether the items of a user's own history are
            excluded from the recommendations.
        eval_length_penalty (`float`, *optional*, defaults to `0.0`): Exponent p of the length penalty. Each score is
            divided by (number of tokens of the item) ** p.
        max_users (`int`, *optional*): Maximum number of users per evaluation during training. The users are spread
            evenly over the evaluated split. Defaults to all users.
        final_split (`str`, *optional*, defaults to `"test"`): Split that the trained model is measured on at the end
            of a run: `"test"`, `"validation"` or `"none"`. With `"validation"`, settings can be compared without
            looking at the test split. With `"none"`, there is no final evaluation.
        max_test_users (`int`, *optional*): Maximum number of users in the final evaluation. The users are spread
            evenly over `final_split`, and are the same for every method and seed. Defaults to all users.
        early_stopping_patience (`int`, *optional*): If set, training stops after this number of successive
            evaluations that do not improve `metric_for_best_model`. A resumed run continues the count.
        early_stopping_threshold (`float`, *optional*, defaults to `0.0`): Smallest improvement that counts. Early
            stopping ignores smaller improvements of the metric.
        overwrite (`bool`, *optional*, defaults to `False`): Whether a run that does not resume may replace the work of
            an earlier run in `output_dir`. The checkpoints, the weights and some other files of the earlier run
            are removed just before the first step of the new one.
        include_catalog (`bool`, *optional*, defaults to `False`): Whether `push_to_hub` pushes the catalogue in any
            case. By default, the catalogue is pushed only if a licence of the data is recorded, and if this licence
            allows redistribution.
        logging_nan_inf_filter (`bool`, *optional*, defaults to `False`): Whether losses that are not finite are left
            out of the logged loss. The filter is off by default, because such losses stop the run anyway, and because
            the filter makes the host wait for the device after every batch.
        activation_checkpointing (`bool`, *optional*, defaults to `True`): Whether the backward pass recomputes
            activations instead of keeping them. This field and the next one are defined here because
            `TrainingArguments` has them only from transformers 5.23 on.
        activation_checkpointing_kwargs (`dict`, *optional*): Options of the recomputation, such as `every_n_layers`.
    """

    # Fields of this package that may change when a run is resumed, because they do not affect how a step changes the
    # weights. Without `list_length`, `eval_exclude_history` may change too (see `fingerprint.py`).
    may_change: ClassVar[tuple[str, ...]] = (
        "eval_ks",
        "eval_recall_at",
        "eval_num_beams",
        "eval_length_penalty",
        "max_users",
        "final_split",
        "max_test_users",
        "early_stopping_patience",
        "early_stopping_threshold",
        "overwrite",
        "include_catalog",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
    )

    prompt_head: str | None = field(default=None, metadata={"help": "text before the history; may contain {user}"})
    prompt_item: str | None = field(
        default=None, metadata={"help": "text of each item in the history; must contain {surface}"}
    )
    prompt_tail: str | None = field(default=None, metadata={"help": "text between the history and the completion"})
    prompt_separator: str | None = field(
        default=None, metadata={"help": "text before every item of the history except the first"}
    )
    chat_template: bool = field(
        default=False, metadata={"help": "whether to apply the tokenizer's chat template to the prompt"}
    )
    list_length: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "number of items per list, for a model that writes lists; if unset, the model writes single items"
        },
    )
    eval_ks: Annotated[list[int], COUNT] = field(
        default_factory=lambda: [1, 5, 10], metadata={"help": "cutoffs k of the ranking metrics, as in ndcg@k"}
    )
    eval_recall_at: Annotated[int, COUNT_FROM_0] = field(
        default=50,
        metadata={
            "help": "additional cutoff at which only recall is computed, for the final table; may need a second pass "
            "with this many beams; 0 skips this recall",
        },
    )
    eval_num_beams: Annotated[int | None, COUNT] = field(
        default=None, metadata={"help": "beam width when ranking; by default the largest of eval_ks, or 1 for lists"}
    )
    eval_exclude_history: bool = field(default=True, metadata={"help": "never recommend items of the user's history"})
    eval_length_penalty: Annotated[float, FINITE] = field(
        default=0.0,
        metadata={
            "help": "exponent p of the length penalty: each score is divided by (number of tokens of the item) ** p"
        },
    )
    max_users: Annotated[int | None, replace(COUNT, hint="leave it out to evaluate all users")] = field(
        default=None,
        metadata={
            "help": "maximum number of users per evaluation during training, spread evenly over the split",
        },
    )
    final_split: FinalSplit = field(
        default="test", metadata={"help": "split to measure the trained model on: test, validation or none"}
    )
    max_test_users: Annotated[int | None, replace(COUNT, hint="leave it out to evaluate all users")] = field(
        default=None,
        metadata={"help": "maximum number of users of the final evaluation, spread evenly over final_split"},
    )
    early_stopping_patience: Annotated[int | None, replace(COUNT, hint="leave it out to train to the end")] = field(
        default=None,
        metadata={"help": "stop after this many successive evaluations that do not improve metric_for_best_model"},
    )
    early_stopping_threshold: Annotated[float, NOT_NEGATIVE] = field(
        default=0.0, metadata={"help": "early_stopping_patience ignores improvements that are smaller than this"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace the checkpoints and weights of an earlier run in output_dir"}
    )
    include_catalog: bool = field(
        default=False,
        metadata={"help": "push the catalogue to the hub even if no recorded licence of the data allows it"},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "leave losses that are not finite out of the logged loss; such losses stop the run anyway"},
    )
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "recompute activations in the backward pass instead of storing them"}
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "options of activation checkpointing, such as every_n_layers"}
    )

    def __post_init__(self) -> None:
        # 1. Let TRL's config complete the fields.
        self._given = given_values(self)  # collected before TRL's config replaces values
        settle_checkpointing(self)
        check_ranges(self)
        # Called before TRL's config, which starts the communication between the processes.
        skip_deepspeed_compilation(getattr(self, "deepspeed", None))
        super().__post_init__()  # type: ignore[no-untyped-call]  # TRL's config, which is next in the MRO
        check_ranges(self)  # again, because TRL's config has now parsed mappings that were given as JSON

        # 2. Check the fields of this package.
        if self.final_split not in get_args(FinalSplit):
            raise ValueError(f"final_split must be test, validation or none, not {self.final_split!r}")
        if not self.eval_ks:
            raise ValueError("eval_ks is empty; give at least one k, such as 10")
        check_early_stopping(self)
        if self.list_length is None:
            return

        # 3. Check the fields that `list_length` restricts.
        check_inert(self, ("eval_length_penalty",), "the scores of lists have no length penalty")
        if max(self.eval_ks) > self.list_length:
            raise ValueError(f"eval_ks={self.eval_ks} contains a k above list_length={self.list_length}; lower that k")

    @property
    def given(self) -> dict[str, Any]:
        """The fields whose values differ from their defaults, for `recipe.yaml`."""
        return self._given

    @property
    def prompt_options(self) -> dict[str, Any]:
        """The options to pass to [`PromptFormat.for_catalog`]."""
        names = ("prompt_head", "prompt_item", "prompt_tail", "chat_template", "list_length")
        options = {name: getattr(self, name) for name in names}
        # Leave out a separator that is not set, so that files that store these options stay the same as in older
        # versions.
        return options if self.prompt_separator is None else {**options, "prompt_separator": self.prompt_separator}


def check_early_stopping(config: RecConfig) -> None:
    """Raises `ValueError` if early stopping would have no effect."""
    if config.early_stopping_patience is None:
        check_inert(config, ("early_stopping_threshold",), "early_stopping_patience is not set")
    elif config.eval_strategy == "no":
        raise ValueError(
            "early_stopping_patience counts evaluations, but nothing is evaluated during training; set eval_strategy "
            "to epoch or steps, or leave early_stopping_patience out"
        )


def check_inert(config: RecConfig, names: tuple[str, ...], why: str) -> None:
    """Raises `ValueError` if the user has set an option that has no effect in our trainer.

    Args:
        config: The configuration.
        names: Names of the options that have no effect.
        why: Why these options have no effect, for the message.
    """
    options = {option.name: option for option in fields(config)}
    for name in names:
        option = options[name]
        default = option.default if option.default_factory is MISSING else option.default_factory()
        if getattr(config, name) != default:
            given = f"{type(config).__name__}: {name}={getattr(config, name)!r}"
            raise ValueError(f"{given} has no effect, because {why}; leave it out")


def check_sft_options(config: RecConfig, why: str) -> None:
    """Raises `ValueError` if the config sets an option of SFTTrainer that our trainers do not support.

    Some of these options have no effect in our trainers, and others would change the tokenizer too late.

    Args:
        config: The configuration.
        why: Why options have no effect, for the message.
    """
    check_inert(config, INERT_SFT, why)
    for name in TOKENIZER_OPTIONS:
        if getattr(config, name) is not None:
            raise ValueError(
                f"{type(config).__name__}: {name}={getattr(config, name)!r} would change the tokenizer after the "
                "catalogue has been tokenized; change the tokenizer yourself, and pass it as processing_class"
            )


def check_padding(config: RecConfig, given: int | str | None) -> None:
    """Raises `ValueError` if the user has set `pad_to_multiple_of`.

    `given` is the value of this option. It must be read before the `__post_init__` of TRL's config, which replaces
    "auto" by a number that suits the device.
    """
    if given not in ("auto", "none", None):
        raise ValueError(f"{type(config).__name__}: pad_to_multiple_of={given!r} has no effect; leave it out")
