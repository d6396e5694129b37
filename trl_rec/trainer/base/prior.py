"""Fits the prior of a run, chooses its strength on the validation split, and keeps it in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trl_rec.decoding.priors import FittedPrior, fit_prior
from trl_rec.decoding.priors.fitted import given_strength
from trl_rec.decoding.priors.run_folder import save_run_prior
from trl_rec.evaluation import Policy
from trl_rec.evaluation.prior_choice import choice_table, choose_prior, given_choice, keep_choice
from trl_rec.trainer.base.config import RecConfig
from trl_rec.trainer.base.prior_config import PriorConfig
from trl_rec.trainer.base.processes import on_main_process


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset


def make_prior(policy: Policy, dataset: RecDataset, args: RecConfig, folder: str | Path) -> FittedPrior | None:
    """Makes the prior that the configuration asks for. Call this function before anything is measured on the split
    `final_split`, so that its setting is recorded before any result is known.

    The run folder gets `choice.json`, `prior.safetensors` and the key `prior` of `recommender.json`. The compared
    settings are printed as a table. Every process must call this function.

    Args:
        policy: The trained policy.
        dataset: The dataset that the policy was trained on.
        args: The configuration. If it is not a [`PriorConfig`], there is no prior.
        folder: The run folder, which contains the model by now.

    Returns:
        The prior, or None if the configuration asks for none.
    """
    if not isinstance(args, PriorConfig) or args.prior == "none":
        return None

    # 1. Fit the prior, and choose its setting.
    prior = fit_prior(args.prior, dataset, exclude_history=args.eval_exclude_history)
    k = max(args.eval_ks)
    strength = given_strength(args.prior_strength)
    if strength is None:
        prior, choice = choose_prior(policy, dataset, prior, k=k, max_users=args.max_users)
    else:
        prior, choice = given_choice(prior, strength, k)

    # 2. Keep both. An error is raised if the folder has another choice that was already measured on the test split.
    def keep() -> None:
        keep_choice(folder, choice, args.final_split)
        save_run_prior(folder, prior)
        print(f"{choice_table(choice)}\n")  # noqa: T201

    on_main_process(keep)
    return prior
