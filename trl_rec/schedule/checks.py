"""Checks the settings and data of preference stages before any training, so that errors do not occur hours later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_rec.compat import is_deepspeed_zero3_enabled, launched_with_fsdp
from trl_rec.decoding.run_folder import check_same_items, settings_of_run
from trl_rec.schedule.settings import Schedule, check_resumes_by_itself
from trl_rec.schedule.stage_preferences import feedback_table
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.trainer.base.prior import check_run_prior
from trl_rec.trainer.bear.config import BearConfig
from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig


def check_pipeline(
    stages: Sequence[PreferenceStage], schedule: Schedule, supervised: BearConfig | None = None
) -> None:
    """Raises `ValueError` if a part of the pipeline in `pipeline.py` is certain to fail: part 2 (supervised
    fine-tuning, if there is a configuration for it) or part 3 (the stages).

    The checks need neither the semantic IDs that part 1 makes nor the policy that part 2 trains, so they can run
    before part 1.

    Args:
        stages: The stages, in the order of training.
        schedule: The settings that all stages share.
        supervised (`BearConfig`, *optional*): Configuration of part 2. The stages must use the same prompts, and the
            same softmax for ranking.
    """
    check_not_sharded(schedule.config)
    check_run_prior(schedule.dataset, schedule.config)

    # The supervised policy must use the prompts and the softmax of the stages.
    if supervised is not None:
        check_resumes_by_itself(supervised)
        _check_same_prompts(
            "the supervised policy", supervised.prompt_options, supervised.softmax == "legal", schedule.config
        )

    # The ratings must suffice for the feedback stages, which learn from ratings.
    for number, stage in enumerate(stages, 1):
        if stage.source == "feedback":
            _check_ratings(number, stage, schedule)


def check_stages(stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule) -> None:
    """Raises `ValueError` if a stage cannot start.

    Checks that

    - training does not run under FSDP or ZeRO-3,
    - the prior that the configuration asks for can be made after the last stage,
    - `start` is a folder, and the output folder is outside it,
    - the dataset has validation rows,
    - if `start` is a run folder, its policy was trained with the items, the prompts and the softmax of the stages,
    - the ratings of the dataset suffice for the feedback stages.

    Args:
        stages: The stages, in the order of training.
        start: Folder of the policy that the first stage starts from.
        schedule: The settings that all stages share.
    """
    # 1. Check the launch, the prior, the folders and the validation split.
    check_not_sharded(schedule.config)
    check_run_prior(schedule.dataset, schedule.config)
    _check_folders(start, schedule)
    if not len(schedule.dataset.validation):
        raise ValueError(
            "the validation split has no rows to compare stages on; prepare the data with more interactions per user"
        )

    # 2. Check that the policy was trained on the same items and prompts that the stages use.
    check_same_items(start, schedule.dataset.catalog, schedule.dataset.path)
    trained_with = settings_of_run(start)
    if trained_with:
        _check_same_prompts(
            f"the policy in {start}", trained_with["prompt"], trained_with["renormalize"], schedule.config
        )

    # 3. Build the tables of the unfinished feedback stages, so that errors in them are raised before any training.
    # This is possible before training, because these tables do not depend on a policy.
    for number, stage in enumerate(stages, 1):
        is_finished = (schedule.folder(number, stage) / "stage.json").is_file()
        if stage.source == "feedback" and not is_finished:
            _check_ratings(number, stage, schedule)


def _check_ratings(number: int, stage: PreferenceStage, schedule: Schedule) -> None:
    """Raises `ValueError` if the table of a feedback stage cannot be built."""
    try:
        feedback_table(number, stage, schedule)
    except ValueError as error:
        raise ValueError(f"stage {number} ({stage.name}): {error}") from error


def check_not_sharded(config: SoftmaxDPOConfig) -> None:
    """Raises `ValueError` under ZeRO-3 and FSDP, because decoding needs the whole policy on each process."""
    fsdp = bool(config.fsdp) or launched_with_fsdp()
    if fsdp or is_deepspeed_zero3_enabled():
        raise ValueError(
            f"preference training in stages does not work under {'FSDP' if fsdp else 'ZeRO-3'}, because self-play "
            "and evaluation need the whole model in each process; use DDP or ZeRO-2"
        )


def _check_folders(start: str | Path, schedule: Schedule) -> None:
    """Raises `ValueError` if `start` is not a folder, or if the output folder is `start` or inside it."""
    if not Path(start).is_dir():
        raise ValueError(
            f"{start} is not a folder; stages start from a policy on disk, such as the output folder of trl-rec bear"
        )
    output = schedule.output.resolve()
    if Path(start).resolve() in (output, *output.parents):
        raise ValueError(
            f"output_dir must be neither the folder of the policy to start from, {start}, nor a folder inside it; "
            "choose another output_dir"
        )


def _check_same_prompts(who: str, prompt: Mapping[str, Any], renormalize: bool, config: SoftmaxDPOConfig) -> None:
    """Raises `ValueError` if the policy was trained with prompts or a softmax that differ from those of the stages.

    Without this check, the only sign of the difference would be worse metrics from the first stage on.

    Args:
        who: Name of the policy, for the message.
        prompt: The options of the policy's prompts.
        renormalize: Whether the policy ranks with the softmax over the legal tokens.
        config: The configuration of the stages.
    """
    # Run folders of earlier versions do not record a separator, because their prompts have none.
    for name, value in {"prompt_separator": None, **prompt}.items():
        in_stages = config.prompt_options.get(name)
        if value != in_stages:
            raise ValueError(
                f"{who} uses {name}={value!r} in its prompts, but the stages use {in_stages!r}; give both the same "
                "value"
            )

    if renormalize != (config.normalize == "catalogue"):
        over, needed = ("legal tokens", "catalogue") if renormalize else ("the vocabulary", "vocabulary")
        raise ValueError(f"{who} ranks items with a softmax over {over}; set normalize to {needed!r} for the stages")
