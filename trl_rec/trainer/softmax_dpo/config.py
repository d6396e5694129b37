"""Defines the configuration of [`SoftmaxDPOTrainer`], which accepts several rejected completions per prompt."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from trl import DPOConfig

from trl_rec.ranges import NOT_NEGATIVE, POSITIVE
from trl_rec.trainer.base.config import INERT_DPO, INERT_DPO_ROWS, check_inert, check_padding
from trl_rec.trainer.base.prior_config import PriorConfig


LOSSES = ("softmax", "dmpo")
BETA = replace(POSITIVE, hint="with 0, the preferences have no effect")
SFT_WEIGHT = replace(NOT_NEGATIVE, hint="a negative weight makes the chosen completion less likely")


@dataclass
class SoftmaxDPOConfig(PriorConfig, DPOConfig):
    """Arguments of [`SoftmaxDPOTrainer`], besides those of [`PriorConfig`] and [`~trl.DPOConfig`].

    Args:
        loss (`str`, *optional*, defaults to `"softmax"`): How the rejected completions are combined: by the
            log-sum-exp of their log-ratios (`"softmax"`) or by the mean of their log-ratios (`"dmpo"`).
        beta (`float`, *optional*, defaults to `1.0`): Weight of the divergence from the reference. Larger values keep
            the policy closer to the reference.
        sft_weight (`float`, *optional*, defaults to `0.0`): Weight of the negative log-likelihood of the chosen
            completion, averaged over its tokens. A positive weight helps the policy to remain good at
            predicting the next item.
        normalize (`str`, *optional*, defaults to `"vocabulary"`): Tokens over which log-probabilities are
            normalized. `"vocabulary"`: all tokens. `"catalogue"`: only the legal tokens, which continue the token path
            of an item. Choose `"catalogue"` if the policy was trained with a softmax over these tokens. Decoding uses
            the same normalization.
        learning_rate (`float`, *optional*, defaults to `1e-5`): Initial learning rate. The default of `DPOConfig` is
            `1e-6`.
    """

    loss: Literal["softmax", "dmpo"] = field(
        default="softmax",
        metadata={"help": "how the rejected completions are combined: softmax (log-sum-exp) or dmpo (mean)"},
    )
    beta: Annotated[float, BETA] = field(
        default=1.0,
        metadata={
            "help": "weight of the divergence from the reference policy",
        },
    )
    sft_weight: Annotated[float, SFT_WEIGHT] = field(
        default=0.0,
        metadata={
            "help": "weight of the chosen completion's negative log-likelihood",
        },
    )
    normalize: Literal["vocabulary", "catalogue"] = field(
        default="vocabulary",
        metadata={
            "help": "tokens over which log-probabilities are normalized: vocabulary (all tokens), or catalogue (only "
            "tokens that continue the path of an item)"
        },
    )

    learning_rate: Annotated[float, NOT_NEGATIVE] = field(default=1e-5, metadata={"help": "initial learning rate"})

    def __post_init__(self) -> None:
        padding = self.pad_to_multiple_of
        super().__post_init__()
        check_padding(self, padding)
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {self.loss!r}")
        check_inert(self, INERT_DPO, "the losses 'softmax' and 'dmpo' do not use it")
        check_inert(self, ("list_length",), "preferences are about single items (for lists, use BladeTrainer)")
        check_inert(
            self, INERT_DPO_ROWS, "the trainer packs its rows, and always cuts long prompts at their beginning"
        )
        if self.sync_ref_model:
            raise ValueError(
                "sync_ref_model=True changes the reference during training, but checkpoints do not contain the "
                "reference, so a resumed run would end with other weights; leave it out"
            )
        check_inert(self, ("ref_model_mixup_alpha", "ref_model_sync_steps"), "sync_ref_model is off")
        if self.normalize not in ("vocabulary", "catalogue"):
            raise ValueError(f"normalize must be 'vocabulary' or 'catalogue', not {self.normalize!r}")
