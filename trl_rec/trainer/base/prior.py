"""Makes the prior of a run: fits the prior, chooses its setting, and saves it.

A prior gives each item a weight, for example by its popularity. In rankings, the weights multiply the probabilities of
the model.

The setting of a prior is its strength (the exponent of the weights) and, for some priors, a further number (see
[`Setting`]). Unless the strength is given, the setting is chosen on the validation split for the trained model, so the
prior is made after training. [`check_run_prior`] is called before training, and finds the problems that are certain to
cause an error after training.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from trl_rec.decoding.priors import FittedPrior, fit_prior
from trl_rec.decoding.priors.fitted import AUTO, PriorKind, given_strength
from trl_rec.decoding.priors.mixture import MixturePrior
from trl_rec.decoding.priors.mixture_fit import fitting_rows
from trl_rec.decoding.priors.run_folder import KEY, save_run_prior
from trl_rec.decoding.run_folder import SETTINGS, settings_of_run
from trl_rec.evaluation import Policy
from trl_rec.evaluation.prior_choice import (
    check_choice,
    choice_table,
    choose_prior,
    given_choice,
    keep_choice,
    read_choice,
    seconds_to_measure,
)
from trl_rec.trainer.base.config import RecConfig
from trl_rec.trainer.base.prior_config import PriorConfig, wants_prior
from trl_rec.trainer.base.processes import on_main_process
from trl_rec.trainer.base.saving.recipe import RECIPE


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset

logger = logging.getLogger(__name__)


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

    # 2. Check this configuration against the choice that an earlier run left in the output folder, unless this run
    # removes that choice.
    config: Any = args  # `RecConfig` does not declare the fields that come from TRL's configurations
    if not config.overwrite or config.resume_from_checkpoint:
        check_choice(config.output_dir, str(args.prior), strength)


def continue_prior(args: RecConfig, folder: str | Path | None) -> None:
    """If a run starts from the model of an earlier run that has a prior, sets the prior of the new run to the same
    kind.

    The new run then fits this prior to its own data. The strength is chosen again on the validation split, unless the
    recipe of the earlier run gives a number. Nothing is set if the user has chosen a prior or `"none"`. A prior of the
    kind `"array"` was not fitted to data, but made from given weights. For this kind, a warning is logged instead.

    Args:
        args: The configuration of the new run, which is changed.
        folder: The folder of the earlier run. Nothing is set if the model comes from anywhere else.
    """
    if not isinstance(args, PriorConfig) or not args.is_prior_open:
        return
    kind = _kind_of(folder)
    if folder is None or kind is None:
        return
    if kind not in get_args(PriorKind):
        logger.warning(
            "%s has a prior of the kind %s, which cannot be fitted again; this run has no prior (to have one, set "
            "prior)",
            folder,
            kind,
        )
        return

    strength = _recipe_of(folder).get("prior_strength", AUTO)
    args.take_prior(kind, str(strength))
    logger.info(
        "%s has a %s prior, so this run fits a prior of this kind to its own data (strength %s); to have no prior, "
        "set prior to none",
        folder,
        kind,
        strength,
    )


def leave_prior(folder: str | Path | None, why: str) -> None:
    """If a run starts from the model of an earlier run that has a prior, logs that the new run has none.

    Args:
        folder: As in [`continue_prior`].
        why: The reason and the remedy, as the end of the logged sentence.
    """
    kind = _kind_of(folder)
    if kind is not None:
        logger.warning("%s has a %s prior, but this run has none, because %s", folder, kind, why)


def _kind_of(folder: str | Path | None) -> Any:
    """Returns the kind of the prior in a run folder, or None if there is no prior or no run folder."""
    if folder is None or not (Path(folder) / SETTINGS).is_file():
        return None
    return (settings_of_run(folder).get(KEY) or {}).get("kind")


def _recipe_of(folder: str | Path) -> dict[str, Any]:
    """Returns the recipe of a run folder, or an empty dict if the folder has no readable recipe."""
    try:
        recipe = yaml.safe_load((Path(folder) / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def seconds_to_choose(policy: Policy, dataset: RecDataset, args: RecConfig) -> float:
    """Estimates how many seconds [`make_prior`] takes to choose the setting of the prior; 0 if nothing is chosen.

    Every process must call this function. The arguments are those of [`make_prior`].
    """
    if not wants_prior(args) or given_strength(args.prior_strength) is not None:
        return 0.0
    return seconds_to_measure(policy, dataset, k=max(args.eval_ks), max_users=args.max_users)


def make_prior(policy: Policy, dataset: RecDataset, args: RecConfig, folder: str | Path) -> FittedPrior | None:
    """Makes the prior that the configuration asks for.

    Call this function before the policy is measured on the split that `final_split` selects, so that the setting of
    the prior cannot depend on the results. Every process must call this function. The main process writes
    `choice.json`, `prior.safetensors` and the key `prior` of `recommender.json`. It also prints a table of the
    compared settings or, if the strength is given, one line with the setting.

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

    # 2. Keep the choice and the prior. An error is raised if the model was already measured on the test split with
    # another choice.
    def _keep() -> None:
        """Writes the choice and the prior, and prints the choice."""
        keep_choice(folder, choice, args.final_split)
        save_run_prior(folder, prior)
        print(f"{choice_table(choice)}\n")  # noqa: T201

    on_main_process(_keep)
    return prior
