"""What is refused before the first stage runs, so that bad input does not wait for hours of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import parse_flag_from_env
from transformers.integrations import is_deepspeed_zero3_enabled

from trl_rec.items import ItemCatalog
from trl_rec.schedule.plan import Schedule
from trl_rec.schedule.stage_candidates import stage_feedback
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.trainer.softmax_dpo_config import SoftmaxDPOConfig


def refuse_before_running(stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule) -> None:
    """Raises where a stage could not begin: by the launcher, the policy's folder, its items, or the log's rows and ratings."""
    refuse_sharding(schedule.config)
    if not Path(start).is_dir():
        raise ValueError(f"{start} is no folder; stages begin from a policy on disk, the output folder of trl-rec bear")
    output = schedule.output.resolve()
    if Path(start).resolve() in (output, *output.parents):
        raise ValueError(f"output_dir is, or lies in, the folder of the policy to begin with, {start}; give another output_dir")
    if not len(schedule.dataset.validation):
        raise ValueError(
            "the validation split has no rows to compare stages on; prepare the data with more interactions a user"
        )
    _refuse_other_items(Path(start), schedule)
    for number, stage in enumerate(stages, 1):
        if stage.source == "feedback" and not (schedule.folder(number, stage) / "stage.json").is_file():
            try:
                stage_feedback(number, stage, schedule)
            except ValueError as error:
                raise ValueError(f"stage {number} ({stage.name}): {error}") from error


def refuse_sharding(config: SoftmaxDPOConfig) -> None:
    """Raises under ZeRO-3 and FSDP: the policy decodes outside of a trainer, where a part of its weights is of no use."""
    fsdp = bool(config.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if fsdp or is_deepspeed_zero3_enabled():
        raise ValueError(
            f"preference training in stages does not work under {'FSDP' if fsdp else 'ZeRO-3'}, as self-play and evaluation "
            "need the whole model on each process; DDP and ZeRO-2 work"
        )


def _refuse_other_items(start: Path, schedule: Schedule) -> None:
    """Raises where the policy's own catalogue, which a run folder holds, writes other items than the dataset."""
    if not (start / "catalog" / "catalog.json").is_file():
        return
    own, now = ItemCatalog.load(start / "catalog"), schedule.dataset.catalog
    told = f"the policy in {start} was trained on"
    if own.fingerprint != now.fingerprint:
        raise ValueError(f"{told} other items than {schedule.dataset.path} holds; train it again, or name its own dataset")
    if own.surface != now.surface:
        raise ValueError(f"{told} the surface {own.surface}, not {now.surface}; choose that surface")
    if (own.surfaces, own.user_surfaces) != (now.surfaces, now.user_surfaces):
        raise ValueError(
            f"{told} other semantic IDs than {schedule.dataset.path} holds now; train it again after trl-rec tokenize"
        )
