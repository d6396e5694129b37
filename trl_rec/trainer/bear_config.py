"""Configuration of [`BearTrainer`]: `SFTConfig` and what BEAR adds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trl import SFTConfig

from trl_rec.trainer.rec_config import RecConfig, refuse_inert


INERT = ("loss_type", "packing", "eval_packing", "padding_free", "assistant_only_loss", "completion_only_loss")


@dataclass
class BearConfig(RecConfig, SFTConfig):
    """Arguments of [`BearTrainer`], besides those of [`RecConfig`] and [`~trl.SFTConfig`].

    `bear_weight=0` is MSL, cross-entropy over the legal tokens; with `softmax="vocabulary"` as well it is plain SFT.

    With a `list_length` the model learns to write lists of distinct items: the user's next ones, in order. What a list holds
    already is then not among the legal tokens, nor, unless `eval_exclude_history` is off, what the history holds: the tokens
    that are legal when lists are drawn. The EOS after a whole list is learned with `softmax="vocabulary"` alone.

    Args:
        bear_weight (`float`, *optional*, defaults to `0.6875`): Weight of the beam term, the paper's lambda. The authors' code
            calls 0.25 what is 0.25 x `sharpness` here.
        sharpness (`float`, *optional*, defaults to `2.75`): The paper's xi, the unit of the margin.
        variant (`str`, *optional*, defaults to `"paper"`): `"paper"`, which leans on targets inside the beam, or
            `"survival"`, which leans on those outside.
        num_beams (`int`, *optional*, defaults to `10`): Beam width to survive, the paper's B.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits in the loss.
        softmax (`str`, *optional*, defaults to `"legal"`): Softmax over the tokens that continue an item, or over the
            `"vocabulary"`. Decoding follows it.
        targets (`str`, *optional*, defaults to `"last"`): One row a target, or with a `list_length` one row a list; or
            `"all"`: one row a sequence with every item a target, for item tokens and semantic IDs. Such a row is one long
            list, but its legal softmax does not leave out what comes before in it.
        every_position (`bool`, *optional*, defaults to `False`): Whether a list begins at every target of a sequence, rather
            than where the list before it ends; with a `list_length`.
        max_history (`int`, *optional*): Most items before a target, with `targets="last"` and no `list_length`.
    """

    bear_weight: float = field(default=0.25 * 2.75, metadata={"help": "weight of the beam term; 0: cross-entropy alone"})
    sharpness: float = field(default=2.75, metadata={"help": "unit of the margin"})
    variant: Literal["paper", "survival"] = field(default="paper", metadata={"help": "paper or survival"})
    num_beams: int = field(default=10, metadata={"help": "beam width to survive"})
    temperature: float = field(default=1.0, metadata={"help": "divides the logits in the loss"})
    softmax: Literal["legal", "vocabulary"] = field(
        default="legal", metadata={"help": "softmax over legal tokens or over the vocabulary"}
    )
    targets: Literal["last", "all"] = field(
        default="last", metadata={"help": "last: one row a target; all: every item of a row a target"}
    )
    every_position: bool = field(default=False, metadata={"help": "with list_length: a list begins at every target"})
    max_history: int | None = field(default=None, metadata={"help": "most items before a target"})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_inert(self, INERT, "rows are built from whole items and the loss is BEAR's")
        if self.softmax not in ("legal", "vocabulary"):
            raise ValueError(f"softmax must be 'legal' or 'vocabulary', not {self.softmax!r}")
        if self.list_length is not None and self.targets == "last":
            refuse_inert(self, ("max_history",), "prompts of lists are bounded by max_length")
        else:
            refuse_inert(self, ("every_position",), "rows of lists alone have it, made with list_length and targets='last'")
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor has no effect with BEAR's loss; leave it out")
