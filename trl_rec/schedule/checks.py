"""Checks that run before any training, so that bad input is refused at once and not after hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_rec.compat import is_deepspeed_zero3_enabled, launched_with_fsdp
from trl_rec.decoding.run_folder import check_same_items, settings_of_run
from trl_rec.schedule.settings import Schedule, check_resumes_by_itself
from trl_rec.schedule.stage_preferences import feedback_table
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.trainer.bear.config import BearConfig
from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig


def check_pipeline(
    stages: Sequence[PreferenceStage], schedule: Schedule, supervised: BearConfig | None = None
) -> None:
    """Raises if the stages could not run, whatever policy and semantic IDs the parts before them make.

    Args:
        stages: The stages, in the order of training.
        schedule: What all stages share.
        supervised (`BearConfig`, *optional*): Configuration of the supervised part. The stages must prompt and rank
            the policy in the same way.
    """
    check_not_sharded(schedule.config)
    if supervised is not None:
        check_resumes_by_itself(supervised)
        _check_same_prompts(
            "the supervised policy", supervised.prompt_options, supervised.softmax == "legal", schedule.config
        )
    for number, stage in enumerate(stages, 1):
        if stage.source == "feedback":
            feedback_table(number, stage, schedule)


def check_stages(stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule) -> None:
    """Raises if a stage could not start: because of the launcher, the first policy's folder, its items or prompts, or
    the log's rows and ratings.

    Args:
        stages: The stages, in the order of training.
        start: Folder of the first policy.
        schedule: What all stages share.
    """
    check_not_sharded(schedule.config)
    _check_folders(start, schedule)
    if not len(schedule.dataset.validation):
        raise ValueError(
            "the validation split has no rows to compare stages on; prepare the data with more interactions per user"
        )

    # The policy and the stages must agree on the items and on how prompts are written.
    check_same_items(start, schedule.dataset.catalog, schedule.dataset.path)
    trained_with = settings_of_run(start)
    if trained_with:
        _check_same_prompts(
            f"the policy in {start}", trained_with["prompt"], trained_with["renormalize"], schedule.config
        )

    # The tables of feedback stages need no policy, so their errors can be raised now.
    for number, stage in enumerate(stages, 1):
        is_finished = (schedule.folder(number, stage) / "stage.json").is_file()
        if stage.source == "feedback" and not is_finished:
            try:
                feedback_table(number, stage, schedule)
            except ValueError as error:
                raise ValueError(f"stage {number} ({stage.name}): {error}") from error


def check_not_sharded(config: SoftmaxDPOConfig) -> None:
    """Raises under ZeRO-3 and FSDP: the policy decodes outside of a trainer, which needs all of its weights."""
    fsdp = bool(config.fsdp) or launched_with_fsdp()
    if fsdp or is_deepspeed_zero3_enabled():
        raise ValueError(
            f"preference training in stages does not work under {'FSDP' if fsdp else 'ZeRO-3'}, because self-play "
            "and evaluation need the whole model on each process; use DDP or ZeRO-2"
        )


def _check_folders(start: str | Path, schedule: Schedule) -> None:
    """Raises if the first policy is not a folder, or would be overwritten."""
    if not Path(start).is_dir():
        raise ValueError(
            f"{start} is not a folder; stages start from a policy on disk, such as the output folder of trl-rec bear"
        )
    output = schedule.output.resolve()
    if Path(start).resolve() in (output, *output.parents):
        raise ValueError(
            f"output_dir is, or lies in, the folder of the policy to start from, {start}; choose another output_dir"
        )


def _check_same_prompts(who: str, prompt: Mapping[str, Any], renormalize: bool, config: SoftmaxDPOConfig) -> None:
    """Raises if the stages would prompt a policy, or rank its lists, differently from its training.

    Otherwise the policy would score worse from the first stage on, without an error.
    """
    for name, value in prompt.items():
        in_stages = config.prompt_options.get(name)
        if value != in_stages:
            raise ValueError(
                f"{who} is prompted with {name}={value!r}, the stages with {in_stages!r}; give the same to both"
            )

    if renormalize != (config.normalize == "catalogue"):
        over, needed = ("legal tokens", "catalogue") if renormalize else ("the vocabulary", "vocabulary")
        raise ValueError(
            f"the lists of {who} are ranked by its softmax over {over}; give the stages normalize: {needed}"
        )
