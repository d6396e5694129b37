"""The whole of Align3GR: semantic IDs of items and users, supervised fine-tuning on several tasks, preference stages.

Each part has a folder of its own and is taken as it is once it has ended: a call that was killed goes on within the
part, and ends with the same IDs and weights.
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
from trl_rec.schedule.checks import check_not_sharded, check_same_prompts
from trl_rec.schedule.loop import run_stages
from trl_rec.schedule.plan import check_same_policy, write_entry
from trl_rec.schedule.reporting import conclude_stages
from trl_rec.schedule.settings import Schedule
from trl_rec.schedule.stage_candidates import stage_feedback
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.semantic_ids import DualIdsConfig, has_dual_ids, make_dual_ids
from trl_rec.trainer.base.reporting import save_run
from trl_rec.trainer.bear.building import build_bear_trainer
from trl_rec.trainer.bear.config import BearConfig


logger = logging.getLogger(__name__)
DONE = "supervised.json"


def give_ids(dataset: RecDataset, config: DualIdsConfig, *, overwrite: bool = False) -> RecDataset:
    """The dataset with semantic IDs of items and users, which are made by one process alone. IDs that were made
    otherwise are replaced with `overwrite` alone; policies that write those can no longer be used with the folder."""
    logger.info("part 1 of 3: semantic IDs")
    if PartialState().num_processes > 1 and not has_dual_ids(dataset, config):
        raise ValueError(
            "semantic IDs are made by one process; run trl-rec tokenize --method dual with these settings first"
        )
    return make_dual_ids(dataset, config, overwrite=overwrite).with_surface("semantic_id")


def check_early(stages: Sequence[PreferenceStage], schedule: Schedule, supervised: BearConfig | None = None) -> None:
    """Raises where the stages could not run whatever the parts before them give: by the launcher, the log's ratings,
    or how the supervised part asks the policy."""
    check_not_sharded(schedule.config)
    if supervised is not None:
        renormalizes = supervised.softmax == "legal"
        check_same_prompts("the supervised policy", supervised.prompt_options, renormalizes, schedule.config)
    for number, stage in enumerate(stages, 1):
        if stage.source == "feedback":
            stage_feedback(number, stage, schedule)


def learn_supervised(dataset: RecDataset, config: BearConfig, model_config: RecModelConfig) -> Path:
    """The folder of a policy that has learned the tasks of `config.tasks`, or the next item alone.

    Args:
        dataset: With semantic IDs; its surface is what the policy writes.
        config: Its `output_dir` is the folder. A checkpoint that is there is gone on from.
        model_config: What to load or make.
    """
    folder = Path(str(config.output_dir))
    check_same_policy(folder, dataset, config, vars(model_config))
    if (folder / DONE).is_file():
        logger.info("part 2 of 3: the supervised policy in %s is there already", folder)
        return folder
    logger.info("part 2 of 3: supervised fine-tuning on %s", ", ".join(config.tasks or ["next_item"]))
    trainer = build_bear_trainer(dataset, config, model_config)
    trainer.train(resume_from_checkpoint=True)
    save_run(trainer, {"dataset": str(dataset.path), "surface": dataset.catalog.surface, **vars(model_config)})
    told = {name: value for name, value in trainer.evaluate().items() if "@" in name}
    trainer.accelerator.free_memory()
    write_entry(folder / DONE, told)
    return folder


def align(
    stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule
) -> tuple[list[dict[str, Any]], dict[str, Evaluation]]:
    """Runs the preference stages from a supervised policy, and measures them; see [`run_stages`] and
    [`conclude_stages`]."""
    logger.info("part 3 of 3: %d preference stages", len(stages))
    reports = run_stages(stages, start, schedule)
    return reports, conclude_stages(reports, start, schedule)
