"""`trl-rec softmax_dpo`: trains on preferences, with one chosen and any number of rejected completions per prompt.

The completions are texts, conversations or items. The key `loss` selects the loss: Softmax-DPO or DMPO.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from trl import ModelConfig

from trl_rec.data import load
from trl_rec.schedule import check_preference_leaks
from trl_rec.scripts.options.parsing import given, parse
from trl_rec.scripts.running import run
from trl_rec.trainer import (
    SoftmaxDPOConfig,
    announce_cost,
    announce_tokens,
    build_softmax_dpo_trainer,
    conclude,
    read_preferences,
    save_run,
)
from trl_rec.trainer.base.prior import check_run_prior, continue_prior, leave_prior


@dataclass
class PreferenceArguments:
    """Arguments for the preferences and, if their completions are items, for the dataset with these items.

    If a dataset is given, the trained model is also evaluated on the split that the option `final_split` selects.
    """

    preferences: str = field(
        metadata={
            "help": "file or hub id with the columns prompt, chosen and rejected; or history, chosen and rejected "
            "(item ids)"
        }
    )
    eval_preferences: str | None = field(
        default=None, metadata={"help": "file or hub id of preferences on which the loss is evaluated during training"}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "dataset folder; required if the completions are items"}
    )
    surface: str = field(default="title", metadata={"help": "how items are written: title, item_token or semantic_id"})


KINDS = (PreferenceArguments, ModelConfig, SoftmaxDPOConfig)


def main(argv: list[str]) -> None:
    """Trains and saves a model. If a dataset is given, also evaluates the model on the split `final_split`."""
    data, model_config, config = parse(KINDS, argv, "softmax_dpo")

    # 1. Load the dataset, and determine the prior of this run. Only a run with a dataset can have a prior. Then read
    # the preferences. If they have the columns `user` and `history`, check each row against the training split: the
    # chosen item must be a target of the row's user, and must directly follow the row's history.
    dataset = None if data.dataset is None else load(data.dataset).with_surface(data.surface)
    catalog = None if dataset is None else dataset.catalog
    if dataset is not None:
        continue_prior(config, model_config.model_name_or_path)
        check_run_prior(dataset, config)
    elif config.is_prior_open:
        leave_prior(
            model_config.model_name_or_path,
            "a prior is fitted to a dataset, but no dataset is given; to have a prior, set 'dataset'",
        )
    preferences = read_preferences(data.preferences, catalog)
    if dataset is not None and {"user", "history"} <= set(preferences.column_names):
        check_preference_leaks(preferences, dataset, feedback=False)

    # 2. Train.
    if data.eval_preferences is not None:
        eval_dataset = read_preferences(data.eval_preferences, catalog)
    else:
        eval_dataset = None if dataset is None else dataset.validation
    trainer = build_softmax_dpo_trainer(preferences, config, model_config, eval_dataset=eval_dataset, catalog=catalog)
    if dataset is not None:
        announce_tokens(trainer, dataset)
        announce_cost(trainer, dataset)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)

    # 3. Save the model. If a dataset is given, also evaluate the model on the split that `final_split` selects.
    recipe = given(argv, data, model_config)
    if dataset is None:
        save_run(trainer, recipe)
    else:
        conclude(trainer, dataset, {**vars(data), **vars(model_config)}, recipe=recipe)
    trainer.end()


if __name__ == "__main__":
    run("softmax_dpo", main, sys.argv[1:])
