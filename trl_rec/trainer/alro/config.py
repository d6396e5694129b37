"""Configuration of [`AlroTrainer`]: `SFTConfig` with the options of ordering rated candidates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from trl import SFTConfig

from trl_rec.losses.alro import Delta, Distance, Score
from trl_rec.ranges import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range
from trl_rec.trainer.base.config import RecConfig, check_inert, check_padding, check_sft_options


# The values of options that are one of a few words.
CHOICES = {"score": Score, "delta": Delta, "distance": Distance, "softmax": Literal["legal", "vocabulary"]}
NUM_CANDIDATES = Range(2, 26, whole=True)  # letters can name no more
INERT_LISTS = ("list_length", "eval_num_beams", "eval_exclude_history", "eval_length_penalty")


@dataclass
class AlroConfig(RecConfig, SFTConfig):
    """Arguments of [`AlroTrainer`], besides those of [`RecConfig`] and [`~trl.SFTConfig`].

    With `lambda_weight=0` and `permutation_weight=0`, training is supervised fine-tuning on the order of the
    candidates. A list is shown in two orders, or in one if `permutation_weight` is 0.

    Args:
        lambda_weight (`float`, *optional*, defaults to `1.0`): Weight of the soft lambda loss, alpha in the
            summaries of the paper. That loss is a mean over pairs and therefore small: weights of 10 to 100 have an
            effect.
        lambda_warmup (`float`, *optional*, defaults to `0.1`): Share of the steps over which that weight rises from 0.
        permutation_weight (`float`, *optional*, defaults to `1.0`): Weight of the permutation-sensitive loss, the
            beta.
        score (`str`, *optional*, defaults to `"logprob"`): What a soft position is made from: `"logprob"` or `"prob"`.
        sharpness (`float`, *optional*, defaults to `1.0`): Sharpness of the softmax over positions, the gamma; 8 to 10
            with `score="prob"`.
        pair_sharpness (`float`, *optional*, defaults to `1.0`): Sharpness of the comparison of two positions, the
            sigma.
        delta (`str`, *optional*, defaults to `"target"`): Whether a pair is weighted by its distance in the
            `"target"` order or in the order of the `"model"`.
        distance (`str`, *optional*, defaults to `"jsd"`): Distance in the permutation-sensitive loss: `"jsd"`,
            `"symkl"` or `"ce"`.
        softmax (`str`, *optional*, defaults to `"legal"`): Whether the supervised term is over the names that are
            left, as in decoding, or over the `"vocabulary"`, which also teaches the model to end with EOS.
        num_candidates (`int`, *optional*, defaults to `10`): Most candidates per list, from 2 to 26.
        stride (`int`, *optional*): New items between the starts of two training lists of a user. By default
            `num_candidates`.
        max_history (`int`, *optional*, defaults to `20`): Most rated items before a list.
        letters (`bool`, *optional*): Whether letters name the candidates. By default they do, unless each item is a
            single token: that token then names the candidate.
        prompt_candidates (`str`, *optional*): Text between the history and the candidates. Here `prompt_item` has to
            contain `{rating}` after `{surface}`.
        log_gradient_norms (`bool`, *optional*, defaults to `False`): Whether the gradient norm of each part is logged,
            which costs up to three backward passes at every `logging_steps`-th step.
        eval_num_orders (`int`, *optional*, defaults to `2`): Orders in which each list is shown in an evaluation.
            Metrics are means over the orders; with two or more, their agreement is measured too.
        eval_single_pass (`bool`, *optional*, defaults to `False`): Whether lists are sorted by the scores of one
            forward pass.
        eval_ks (`list[int]`, *optional*, defaults to `[1, 3, 5, 10]`): Lengths at which lists are cut.
    """

    may_change = (*RecConfig.may_change, "log_gradient_norms", "eval_num_orders", "eval_single_pass")

    lambda_weight: Annotated[float, NOT_NEGATIVE] = field(
        default=1.0, metadata={"help": "weight of the soft lambda loss"}
    )
    lambda_warmup: Annotated[float, SHARE] = field(
        default=0.1, metadata={"help": "share of the steps over which that weight rises"}
    )
    permutation_weight: Annotated[float, NOT_NEGATIVE] = field(
        default=1.0, metadata={"help": "weight of the permutation-sensitive loss"}
    )
    score: Literal["logprob", "prob"] = field(
        default="logprob", metadata={"help": "soft positions from logprob or prob"}
    )
    sharpness: Annotated[float, POSITIVE] = field(
        default=1.0, metadata={"help": "sharpness of the softmax over positions"}
    )
    pair_sharpness: Annotated[float, POSITIVE] = field(
        default=1.0, metadata={"help": "sharpness of the comparison of two positions"}
    )
    delta: Literal["target", "model"] = field(
        default="target", metadata={"help": "distances in the target's or model's order"}
    )
    distance: Literal["jsd", "symkl", "ce"] = field(
        default="jsd", metadata={"help": "between two orders: jsd, symkl or ce"}
    )
    softmax: Literal["legal", "vocabulary"] = field(
        default="legal", metadata={"help": "supervised term over the names left or over the vocabulary"}
    )
    num_candidates: Annotated[int, NUM_CANDIDATES] = field(default=10, metadata={"help": "most candidates per list"})
    stride: Annotated[int | None, COUNT] = field(
        default=None, metadata={"help": "new items between the starts of two training lists"}
    )
    max_history: Annotated[int | None, COUNT] = field(default=20, metadata={"help": "most rated items before a list"})
    letters: bool | None = field(default=None, metadata={"help": "letters name the candidates"})
    prompt_candidates: str | None = field(
        default=None, metadata={"help": "text between the history and the candidates"}
    )
    log_gradient_norms: bool = field(default=False, metadata={"help": "log the gradient norm of each part"})
    eval_num_orders: Annotated[int, COUNT] = field(
        default=2, metadata={"help": "orders in which each list is shown in an evaluation"}
    )
    eval_single_pass: bool = field(default=False, metadata={"help": "sort by the scores of one forward pass"})
    eval_ks: Annotated[list[int], COUNT] = field(
        default_factory=lambda: [1, 3, 5, 10], metadata={"help": "lengths at which lists are cut"}
    )

    @property
    def prompt_options(self) -> dict[str, Any]:
        """The options of [`RatedPromptFormat.for_catalog`]."""
        names = ("prompt_head", "prompt_item", "prompt_tail", "prompt_candidates", "chat_template", "letters")
        return {name: getattr(self, name) for name in names}

    @property
    def num_orders(self) -> int:
        """Orders in which each list is shown in training."""
        return 2 if self.permutation_weight else 1

    def __post_init__(self) -> None:
        # Options of catalogue ranking and of SFTTrainer's rows that would silently do nothing.
        check_inert(self, INERT_LISTS, "candidates are ranked, not the catalogue")
        padding = self.pad_to_multiple_of
        super().__post_init__()
        check_padding(self, padding)
        check_sft_options(self, "rows are built from rated items and the loss is ALRO's")

        # Unknown words.
        for name, kind in CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")
