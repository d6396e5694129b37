"""What is refused before the first stage runs, so that bad input does not wait for hours of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_rec.compat import is_deepspeed_zero3_enabled, launched_with_fsdp
from trl_rec.decoding.run_folder import check_same_items, settings_of_run
from trl_rec.schedule.settings import Schedule
from trl_rec.schedule.stage_candidates import stage_feedback
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig


def check_before_running(stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule) -> None:
    """Raises where a stage could not begin: by the launcher, the policy's folder, its items, or the log's rows and
    ratings."""
    check_not_sharded(schedule.config)
    if not Path(start).is_dir():
        raise ValueError(
            f"{start} is no folder; stages begin from a policy on disk, the output folder of trl-rec bear"
        )
    output = schedule.output.resolve()
    if Path(start).resolve() in (output, *output.parents):
        raise ValueError(
            f"output_dir is, or lies in, the folder of the policy to begin with, {start}; give another output_dir"
        )
    if not len(schedule.dataset.validation):
        raise ValueError(
            "the validation split has no rows to compare stages on; prepare the data with more interactions a user"
        )
    check_same_items(start, schedule.dataset.catalog, schedule.dataset.path)
    own = settings_of_run(start)
    if own:
        check_same_prompts(f"the policy in {start}", own["prompt"], own["renormalize"], schedule.config)
    for number, stage in enumerate(stages, 1):
        if stage.source == "feedback" and not (schedule.folder(number, stage) / "stage.json").is_file():
            try:
                stage_feedback(number, stage, schedule)
            except ValueError as error:
                raise ValueError(f"stage {number} ({stage.name}): {error}") from error


def check_not_sharded(config: SoftmaxDPOConfig) -> None:
    """Raises under ZeRO-3 and FSDP: the policy decodes outside of a trainer, where a part of its weights is of no
    use."""
    fsdp = bool(config.fsdp) or launched_with_fsdp()
    if fsdp or is_deepspeed_zero3_enabled():
        raise ValueError(
            f"preference training in stages does not work under {'FSDP' if fsdp else 'ZeRO-3'}, as self-play and evaluation "
            "need the whole model on each process; DDP and ZeRO-2 work"
        )


def check_same_prompts(who: str, prompt: Mapping[str, Any], renormalizes: bool, config: SoftmaxDPOConfig) -> None:
    """Raises where a policy is prompted otherwise than in the stages, or its lists are ranked by another softmax: it
    would fall behind itself before any stage, with no word."""
    for name, value in prompt.items():
        now = config.prompt_options.get(name)
        if value != now:
            raise ValueError(
                f"{who} is prompted with {name}={value!r}, the stages with {now!r}; give the same to both"
            )
    if renormalizes != (config.normalize == "catalogue"):
        over, wanted = ("legal tokens", "catalogue") if renormalizes else ("the vocabulary", "vocabulary")
        raise ValueError(
            f"the lists of {who} are ranked by its softmax over {over}; give the stages normalize: {wanted}"
        )
