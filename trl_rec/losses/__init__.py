"""What is learned: pure functions of tensors, one file a method, that return a `LossOutput`."""

from trl_rec._lazy import lazy_names


__all__ = [
    "LossOutput",
    "bear_loss",
    "best_of_n_reward",
    "leave_one_out",
    "list_policy_loss",
    "permutation_loss",
    "posterior_cdf",
    "soft_lambda_loss",
    "softmax_dpo_loss",
    "standardized",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "LossOutput": "output",
        "bear_loss": "bear",
        "best_of_n_reward": "blade",
        "leave_one_out": "blade",
        "list_policy_loss": "blade",
        "permutation_loss": "alro",
        "posterior_cdf": "blade",
        "soft_lambda_loss": "alro",
        "softmax_dpo_loss": "softmax_dpo",
        "standardized": "blade",
    },
)
