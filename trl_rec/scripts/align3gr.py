"""`trl-rec align3gr`: semantic IDs, supervised fine-tuning on several tasks, and preference stages, or the stages
alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import PartialState
from trl import get_peft_config

from trl_rec.data import load
from trl_rec.models import RecModelConfig, loading_options
from trl_rec.schedule import Schedule, align, align3gr_stages, check_pipeline, give_ids, learn_supervised, read_stages
from trl_rec.scripts.parsing import parse, parse_section, run, tell_progress
from trl_rec.semantic_ids import DualIdsConfig
from trl_rec.trainer import BearConfig, SoftmaxDPOConfig
from trl_rec.trainer.base.shutdown import end_processes


# Fields that the supervised part takes from the configuration of the stages unless its own section sets them.
COMMON = (
    "max_steps",
    "prompt_head",
    "prompt_item",
    "prompt_tail",
    "chat_template",
    "list_length",
    "max_length",
    "eval_ks",
    "eval_exclude_history",
    "eval_num_beams",
    "eval_length_penalty",
    "max_users",
    "per_device_eval_batch_size",
    "seed",
    "use_cpu",
    "bf16",
    "fp16",
    "activation_checkpointing",
    "trust_remote_code",
    "report_to",
    "disable_tqdm",
)


@dataclass
class ScheduleArguments:
    """Which data, and which parts. Without `supervised`, `model_name_or_path` is the policy to begin with; with it,
    what is fine-tuned, or nothing for a small model from scratch."""

    dataset: str = field(metadata={"help": "dataset folder"})
    surface: str = field(default="semantic_id", metadata={"help": "title, item_token or semantic_id"})
    tokenize: dict | None = field(
        default=None, metadata={"help": "in a recipe: keys of DualIdsConfig; IDs are made first"}
    )
    overwrite_ids: bool = field(default=False, metadata={"help": "replace IDs that were made otherwise"})
    supervised: dict | None = field(
        default=None, metadata={"help": "in a recipe: keys of trl-rec bear; max_steps holds here too"}
    )
    stages: list[dict] | None = field(
        default=None, metadata={"help": "in a recipe: a list of stages; else Align3GR's five"}
    )
    keep: str = field(default="best", metadata={"help": "best: a stage that does not help is undone; last: it is not"})


def main(argv: list[str]) -> None:
    """Runs the parts that are left, and measures the last policy on the test split."""
    data, model_config, config = parse((ScheduleArguments, RecModelConfig, SoftmaxDPOConfig), argv, "align3gr")
    tell_progress()
    start = model_config.model_name_or_path
    if start is None and data.supervised is None:
        raise ValueError(
            "no policy to begin with; give model_name_or_path, the output folder of trl-rec bear, or supervised"
        )
    stages = align3gr_stages() if data.stages is None else read_stages(data.stages)
    ids = None if data.tokenize is None else parse_section(DualIdsConfig, data.tokenize, "align3gr: tokenize")
    supervised = None if data.supervised is None else _supervised(data.supervised, config)
    dataset = load(data.dataset)
    schedule = Schedule(
        dataset,
        config,
        keep=data.keep,
        adapter=get_peft_config(model_config),
        model_options=loading_options(model_config, config.trust_remote_code),
    )
    check_pipeline(stages, schedule, supervised)
    if ids is not None:
        dataset = give_ids(dataset, ids, overwrite=data.overwrite_ids)
    dataset = dataset.with_surface(data.surface)
    if supervised is not None:
        start = learn_supervised(dataset, supervised, model_config)
    schedule = replace(schedule, dataset=dataset)
    align(stages, start, schedule)
    end_processes(PartialState().destroy_process_group)


def _supervised(section: dict[str, Any], config: SoftmaxDPOConfig) -> BearConfig:
    """The supervised part's configuration: its section, and what it has from the stages'."""
    common = {"output_dir": f"{config.output_dir}/supervised"} | {name: getattr(config, name) for name in COMMON}
    return parse_section(BearConfig, common | section, "align3gr: supervised")


if __name__ == "__main__":
    run("align3gr", main, sys.argv[1:])
