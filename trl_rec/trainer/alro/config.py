"""Defines the configuration of [`AlroTrainer`]: `SFTConfig` with options for ordering rated candidates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from trl import SFTConfig

from trl_rec.losses.alro import Delta, Distance, Score
from trl_rec.ranges import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range
from trl_rec.trainer.base.config import RecConfig, check_inert, check_padding, check_sft_options


# The allowed values of string options.
CHOICES = {"score": Score, "delta": Delta, "distance": Distance, "softmax": Literal["legal", "vocabulary"]}
CHOICES["candidate_order"] = Literal["shuffled", "given"]
NUM_CANDIDATES = Range(2, 26, whole=True)  # candidates may be named by the letters A to Z
INERT_LISTS = ("list_length", "eval_recall_at", "eval_num_beams", "eval_exclude_history", "eval_length_penalty")


@dataclass
class AlroConfig(RecConfig, SFTConfig):
    """Arguments of [`AlroTrainer`], besides those of [`RecConfig`] and [`~trl.SFTConfig`].

    With `lambda_weight=0` and `permutation_weight=0`, training is supervised fine-tuning on the target answers, which
    list the candidates from best to worst. Each list of candidates is presented to the model in one order if
    `permutation_weight` is 0, and in two orders otherwise.

    The full text of the ALRO paper was not available, so the Greek letters below come from other authors' summaries of
    it.

    Args:
        lambda_weight (`float`, *optional*, defaults to `1.0`): Weight of the soft lambda loss (alpha). This loss
            is small, because it is averaged over pairs. Weights of 10 to 100 have a noticeable effect.
        lambda_warmup (`float`, *optional*, defaults to `0.1`): Fraction of the training steps over which
            `lambda_weight` is increased linearly from 0.
        permutation_weight (`float`, *optional*, defaults to `1.0`): Weight of the permutation-sensitive loss (beta).
        score (`str`, *optional*, defaults to `"logprob"`): Whether the soft lambda loss computes the expected position
            of each candidate in the answer from log-probabilities (`"logprob"`) or from probabilities (`"prob"`).
        sharpness (`float`, *optional*, defaults to `1.0`): Sharpness of the softmax over positions in the soft lambda
            loss (gamma). Use 8 to 10 with `score="prob"`.
        pair_sharpness (`float`, *optional*, defaults to `1.0`): Sharpness of the pairwise comparison of expected
            positions in the soft lambda loss (sigma).
        delta (`str`, *optional*, defaults to `"target"`): Order of the candidates that determines the weight of each
            pair in the soft lambda loss. The weight depends on the distance between the two candidates in this order.
            `"target"`: the order of the target answer. `"model"`: the order that the model predicts.
        distance (`str`, *optional*, defaults to `"jsd"`): How the permutation-sensitive loss measures the distance
            between the model's answers to the two orders of a list: `"jsd"` (Jensen-Shannon divergence), `"symkl"`
            (symmetric KL divergence) or `"ce"` (cross-entropy).
        softmax (`str`, *optional*, defaults to `"legal"`): Tokens over which the supervised loss computes the softmax.
            `"legal"`: as in decoding, the names of the candidates that are not yet in the answer (the name of a
            candidate is the token that identifies it in the answer). `"vocabulary"`: the whole vocabulary. The model
            then also learns to end the answer with EOS.
        num_candidates (`int`, *optional*, defaults to `10`): Maximum number of candidates per list, from 2 to 26.
        stride (`int`, *optional*): Number of candidates between the starts of consecutive training lists of a user.
            Defaults to `num_candidates`, so that the lists do not overlap.
        max_history (`int`, *optional*, defaults to `20`): Maximum number of rated items in a history.
        candidate_order (`str`, *optional*, defaults to `"shuffled"`): Order in which training prompts show the
            candidates. `"shuffled"`: a random order. `"given"`: by mean rating in the training split, best first, as a
            retriever might show them. The label of a candidate (the user's first rating of it) is left out of its
            mean. If `permutation_weight` is not 0, each list is also presented in a second order, which is random in
            both cases. Evaluations always show random orders.
        letters (`bool`, *optional*): Whether candidates are named by letters. By default, candidates are named by
            their own tokens if every item is a single token, and by letters otherwise.
        prompt_candidates (`str`, *optional*): Text between the history and the candidates. (For this trainer, the
            inherited field `prompt_tail` is the text between the candidates and the answer, `prompt_item` must contain
            `{rating}` after `{surface}`, and no text may contain `{user}`.)
        log_gradient_norms (`bool`, *optional*, defaults to `False`): Whether to log the gradient norm of each part of
            the loss. At each logging step, this costs up to three extra backward passes per micro-batch.
        eval_num_orders (`int`, *optional*, defaults to `2`): Number of orders in which each list is presented in an
            evaluation. Metrics are averaged over the orders. With two or more orders, evaluation also measures how
            much the model's rankings agree across orders, and how biased the model is towards positions in the prompt.
        eval_single_pass (`bool`, *optional*, defaults to `False`): Whether to rank candidates by the logits of a
            single forward pass instead of decoding an answer.
        eval_ks (`list[int]`, *optional*, defaults to `[1, 3, 5, 10]`): The cutoffs k of the ranking metrics.
    """

    may_change = (*RecConfig.may_change, "log_gradient_norms", "eval_num_orders", "eval_single_pass")

    lambda_weight: Annotated[float, NOT_NEGATIVE] = field(
        default=1.0, metadata={"help": "weight of the soft lambda loss"}
    )
    lambda_warmup: Annotated[float, SHARE] = field(
        default=0.1, metadata={"help": "fraction of the steps over which lambda_weight rises from 0"}
    )
    permutation_weight: Annotated[float, NOT_NEGATIVE] = field(
        default=1.0, metadata={"help": "weight of the permutation-sensitive loss"}
    )
    score: Literal["logprob", "prob"] = field(
        default="logprob",
        metadata={
            "help": "what the soft lambda loss computes expected positions from: log-probabilities (logprob) or "
            "probabilities (prob)"
        },
    )
    sharpness: Annotated[float, POSITIVE] = field(
        default=1.0, metadata={"help": "sharpness of the softmax over positions in the soft lambda loss"}
    )
    pair_sharpness: Annotated[float, POSITIVE] = field(
        default=1.0,
        metadata={"help": "sharpness of the pairwise comparison of expected positions in the soft lambda loss"},
    )
    delta: Literal["target", "model"] = field(
        default="target",
        metadata={
            "help": "order of candidates that determines the weight of each pair in the soft lambda loss: target (the "
            "order of the target answer) or model (the order that the model predicts)"
        },
    )
    distance: Literal["jsd", "symkl", "ce"] = field(
        default="jsd",
        metadata={"help": "distance between the answers to two orders of the candidates: jsd, symkl or ce"},
    )
    softmax: Literal["legal", "vocabulary"] = field(
        default="legal",
        metadata={
            "help": "tokens over which the supervised loss computes the softmax: legal (names of the remaining "
            "candidates) or vocabulary"
        },
    )
    num_candidates: Annotated[int, NUM_CANDIDATES] = field(
        default=10, metadata={"help": "maximum number of candidates per list"}
    )
    stride: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "number of candidates between the starts of consecutive lists of a user; by default num_candidates"
        },
    )
    max_history: Annotated[int | None, COUNT] = field(
        default=20, metadata={"help": "maximum number of rated items in a history"}
    )
    candidate_order: Literal["shuffled", "given"] = field(
        default="shuffled",
        metadata={"help": "order of the candidates in training prompts: shuffled, or given (by mean rating)"},
    )
    letters: bool | None = field(
        default=None,
        metadata={"help": "name candidates by letters; by default true, or false if every item is a single token"},
    )
    prompt_candidates: str | None = field(
        default=None, metadata={"help": "text between the history and the candidates"}
    )
    log_gradient_norms: bool = field(
        default=False, metadata={"help": "log the gradient norm of each part of the loss"}
    )
    eval_num_orders: Annotated[int, COUNT] = field(
        default=2, metadata={"help": "number of orders in which each list is presented in an evaluation"}
    )
    eval_single_pass: bool = field(
        default=False,
        metadata={"help": "rank candidates by the logits of a single forward pass instead of decoding an answer"},
    )
    eval_ks: Annotated[list[int], COUNT] = field(
        default_factory=lambda: [1, 3, 5, 10],
        metadata={"help": "cutoffs k of the ranking metrics, as in graded_ndcg@k"},
    )

    @property
    def prompt_options(self) -> dict[str, Any]:
        """Keyword arguments for [`RatedPromptFormat.for_catalog`]."""
        names = ("prompt_head", "prompt_item", "prompt_tail", "prompt_candidates", "chat_template", "letters")
        return {name: getattr(self, name) for name in names}

    @property
    def num_orders(self) -> int:
        """Number of orders in which each list is presented in training."""
        return 2 if self.permutation_weight else 1

    def __post_init__(self) -> None:
        # Refuse options of catalogue ranking and of SFTTrainer that would silently have no effect.
        check_inert(self, INERT_LISTS, "AlroTrainer ranks candidates, not the catalogue")
        check_inert(self, ("prompt_separator",), "rated histories have no separator (write the text into prompt_item)")
        padding = self.pad_to_multiple_of
        super().__post_init__()
        check_padding(self, padding)
        check_sft_options(self, "rows are built from rated items and the loss is ALRO's")

        # Check string options.
        for name, kind in CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")
