"""Runs the three parts of Align³GR: semantic IDs of items and users, multi-task fine-tuning, and preference stages.

Each part has its own folder, and a finished part is not run again. If the process is killed, run the same program
again. Training then resumes from the newest checkpoint. Unfinished semantic IDs are made again, but text vectors that
were already computed are reused. The IDs and weights are the same as without the interruption.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from trl_rec.data.dataset import RecDataset
from trl_rec.evaluation import Evaluation
from trl_rec.models import RecModelConfig
from trl_rec.schedule.loop import run_stages
from trl_rec.schedule.plan import check_same_policy, write_entry
from trl_rec.schedule.reporting import conclude_stages
from trl_rec.schedule.settings import Schedule, check_resumes_by_itself
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.semantic_ids import DualIdsConfig, has_dual_ids, make_dual_ids
from trl_rec.trainer.base.reporting import save_run
from trl_rec.trainer.base.saving.recipe import given_values
from trl_rec.trainer.bear.building import build_bear_trainer
from trl_rec.trainer.bear.config import BearConfig


logger = logging.getLogger(__name__)

# File with the validation metrics of a supervised policy. It is written when the policy is complete.
DONE = "supervised.json"


def give_ids(dataset: RecDataset, config: DualIdsConfig, *, overwrite: bool = False) -> RecDataset:
    """Part 1: makes semantic IDs of items and users, or loads IDs that were made before with the same settings.

    Making IDs requires a single process. Loading IDs works with several processes.

    Args:
        dataset: The dataset. The IDs are stored in its folder.
        config: How the IDs are made.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace IDs that were made with other settings.
            Policies that were trained with the old IDs can then no longer be used with this dataset.

    Returns:
        The dataset with surface `semantic_id`.
    """
    logger.info("part 1 of 3: semantic IDs")
    if PartialState().num_processes > 1 and not has_dual_ids(dataset, config):
        raise ValueError(
            "only a single process can make semantic IDs; first run 'trl-rec tokenize --method dual' with these "
            "settings"
        )
    return make_dual_ids(dataset, config, overwrite=overwrite).with_surface("semantic_id")


def learn_supervised(dataset: RecDataset, config: BearConfig, model_config: RecModelConfig) -> Path:
    """Part 2: fine-tunes a policy on the tasks in `config.tasks` or, if `tasks` is unset, only on the next-item task.

    Args:
        dataset: The dataset. Its catalogue must have the surface in which the policy writes items.
        config: Configuration of the trainer. The policy is saved to `output_dir`, and training resumes from the
            newest checkpoint in this folder.
        model_config: Which model to load, or how to make one from scratch.

    Returns:
        The folder of the policy.
    """
    # 1. Raise if the folder contains a policy that was trained with other settings. If the policy is finished, return
    # its folder.
    check_resumes_by_itself(config)
    folder = Path(str(config.output_dir))
    check_same_policy(folder, dataset, config, vars(model_config))
    if (folder / DONE).is_file():
        logger.info("part 2 of 3: the supervised policy in %s is complete", folder)
        return folder

    # 2. Train the policy.
    logger.info("part 2 of 3: supervised fine-tuning on %s", ", ".join(config.tasks or ["next_item"]))
    trainer = build_bear_trainer(dataset, config, model_config)
    trainer.train(resume_from_checkpoint=True)
    origin = {"dataset": str(dataset.path), "surface": dataset.catalog.surface}
    save_run(trainer, {**origin, **given_values(model_config)})

    # 3. Evaluate the policy, and mark it as complete.
    metrics = {name: value for name, value in trainer.evaluate().items() if "@" in name}
    trainer.accelerator.free_memory()
    write_entry(folder / DONE, metrics)
    return folder


def align(
    stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule
) -> tuple[list[dict[str, Any]], dict[str, Evaluation]]:
    """Part 3: runs the preference stages, starting from a supervised policy, and evaluates their result.

    The supervised policy, the policy after the last stage and some baselines are evaluated on the split
    `schedule.config.final_split`. If this option is `"none"`, nothing is evaluated.

    Args:
        stages: The stages, in the order of training.
        start: Folder of the supervised policy.
        schedule: The settings that all stages share.

    Returns:
        The reports of the stages (see [`run_stages`]), and the results of the evaluated recommenders by name (see
        [`conclude_stages`]).
    """
    logger.info("part 3 of 3: %d preference stages", len(stages))
    reports = run_stages(stages, start, schedule)
    return reports, conclude_stages(reports, start, schedule)
