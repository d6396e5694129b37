"""Implements the losses as pure functions of tensors, with one file per method. Each loss returns a `LossOutput`."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "LossOutput",
    "bear_loss",
    "best_of_n_reward",
    "dmpo_loss",
    "leave_one_out",
    "list_policy_loss",
    "permutation_loss",
    "posterior_cdf",
    "sampled_softmax_loss",
    "soft_lambda_loss",
    "softmax_dpo_loss",
    "standardized",
]

if TYPE_CHECKING:
    from trl_rec.losses.alro import permutation_loss, soft_lambda_loss
    from trl_rec.losses.bear import bear_loss
    from trl_rec.losses.blade import best_of_n_reward, leave_one_out, list_policy_loss, posterior_cdf, standardized
    from trl_rec.losses.dmpo import dmpo_loss
    from trl_rec.losses.output import LossOutput
    from trl_rec.losses.sampled import sampled_softmax_loss
    from trl_rec.losses.softmax_dpo import softmax_dpo_loss
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "alro": ["permutation_loss", "soft_lambda_loss"],
            "bear": ["bear_loss"],
            "blade": ["best_of_n_reward", "leave_one_out", "list_policy_loss", "posterior_cdf", "standardized"],
            "dmpo": ["dmpo_loss"],
            "output": ["LossOutput"],
            "sampled": ["sampled_softmax_loss"],
            "softmax_dpo": ["softmax_dpo_loss"],
        },
    )
