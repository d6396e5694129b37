"""Makes the prior of a run: fits the prior, chooses its strength on the validation split, and saves it.

The strength is chosen for the trained model, so the prior is made after training. Problems that are certain to cause
an error at that point are found before training, by [`check_run_prior`].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_rec.decoding.priors import FittedPrior, fit_prior
from trl_rec.decoding.priors.fitted import given_strength
from trl_rec.decoding.priors.mixture import MixturePrior, fitting_rows
from trl_rec.decoding.priors.run_folder import save_run_prior
from trl_rec.evaluation import Policy
from trl_rec.evaluation.prior_choice import (
    check_choice,
    choice_table,
    choose_prior,
    given_choice,
    keep_choice,
    read_choice,
)
from trl_rec.trainer.base.config import RecConfig
from trl_rec.trainer.base.prior_config import wants_prior
from trl_rec.trainer.base.processes import on_main_process


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset


def check_run_prior(dataset: RecDataset, args: RecConfig) -> None:
    """Raises `ValueError` if it is certain that [`make_prior`] will fail at the end of the run.

    Call this function before training.

    Args:
        dataset: The dataset that the model will be trained on.
        args: The configuration.
    """
    if not wants_prior(args):
        return

    # 1. Check that the validation split suffices.
    strength = given_strength(args.prior_strength)
    if strength is None and not len(dataset.validation):
        raise ValueError(
            "prior_strength=auto chooses the strength on the validation split, which has no rows; give prior_strength "
            "a number, or prepare the data with more interactions per user"
        )
    if args.prior == MixturePrior.kind:
        fitting_rows(dataset.validation, exclude_history=args.eval_exclude_history)

    # 2. Check an earlier choice in the output folder, unless this run removes it.
    config: Any = args  # `RecConfig` does not declare the fields that come from TRL's configurations
    if not config.overwrite or config.resume_from_checkpoint:
        check_choice(config.output_dir, str(args.prior), strength)


def make_prior(policy: Policy, dataset: RecDataset, args: RecConfig, folder: str | Path) -> FittedPrior | None:
    """Makes the prior that the configuration asks for.

    Call this function before the split `final_split` is measured, so that the setting of the prior cannot depend on
    the results. Every process must call this function. The main process writes `choice.json`, `prior.safetensors` and
    the key `prior` of `recommender.json`, and prints the compared settings as a table.

    Args:
        policy: The trained policy.
        dataset: The dataset that the policy was trained on.
        args: The configuration. If it is not a [`PriorConfig`], there is no prior.
        folder: The run folder, in which the model is already saved.

    Returns:
        The prior, or None if the configuration asks for no prior.
    """
    if not wants_prior(args):
        return None

    # 1. Fit the prior, and choose its setting.
    prior = fit_prior(str(args.prior), dataset, exclude_history=args.eval_exclude_history)
    k = max(args.eval_ks)
    strength = given_strength(args.prior_strength)
    if strength is None:
        prior, choice = choose_prior(policy, dataset, prior, k=k, max_users=args.max_users)
    else:
        prior, choice = given_choice(prior, strength, k, recorded=on_main_process(lambda: read_choice(folder)))

    # 2. Keep the choice and the prior. An error is raised if the test split was already measured with another choice.
    def _keep() -> None:
        keep_choice(folder, choice, args.final_split)
        save_run_prior(folder, prior)
        print(f"{choice_table(choice)}\n")  # noqa: T201

    on_main_process(_keep)
    return prior
