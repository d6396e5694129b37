"""`trl-rec align3gr`: makes semantic IDs, fine-tunes on several tasks, and trains on preferences in stages.

These are the three parts of a recipe. The second one is called the supervised part. A recipe can also run the
preference stages alone, starting from an existing policy.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import PartialState
from trl import get_peft_config

from trl_rec.data import load
from trl_rec.models import RecModelConfig, loading_options
from trl_rec.schedule import Schedule, align, align3gr_stages, check_pipeline, give_ids, learn_supervised, read_stages
from trl_rec.scripts.options.parsing import given, parse, parse_section, show_progress
from trl_rec.scripts.running import run
from trl_rec.semantic_ids import DualIdsConfig
from trl_rec.trainer import BearConfig, SoftmaxDPOConfig
from trl_rec.trainer.base.prior import continue_prior
from trl_rec.trainer.base.shutdown import end_processes


# Fields that are copied from the configuration of the stages to the configuration of the supervised part, unless the
# section `supervised` sets them.
COMMON = (
    "max_steps",
    "prompt_head",
    "prompt_item",
    "prompt_tail",
    "prompt_separator",
    "chat_template",
    "list_length",
    "max_length",
    "eval_ks",
    "eval_recall_at",
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
    """Arguments for the data and for the parts to run.

    If `supervised` is unset, the stages start from the policy in `model_name_or_path`. If `supervised` is set, the
    stages start from a policy that is trained first: the model in `model_name_or_path` is fine-tuned or, if
    `model_name_or_path` is unset, a small model is trained from scratch.
    """

    dataset: str = field(metadata={"help": "dataset folder, made by trl-rec prepare"})
    surface: str = field(
        default="semantic_id", metadata={"help": "how items are written: title, item_token or semantic_id"}
    )
    tokenize: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "settings of trl-rec tokenize --method dual; if set, semantic IDs are made first"},
    )
    overwrite_ids: bool = field(
        default=False, metadata={"help": "replace semantic IDs that were made with other settings"}
    )
    supervised: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": (
                "settings of trl-rec bear; if set, a policy is trained first. Shared settings that are left out here, "
                "such as prompts and max_steps, are copied from the keys outside this section"
            )
        },
    )
    stages: list[dict[str, Any]] | None = field(
        default=None,
        metadata={
            "help": "list of mappings, one per stage, such as {source: self_play}; the stages of Align3GR if unset"
        },
    )
    keep: str = field(
        default="best",
        metadata={"help": "best: undo a stage that does not improve the policy; last: keep every stage"},
    )


KINDS = (ScheduleArguments, RecModelConfig, SoftmaxDPOConfig)


def main(argv: list[str]) -> None:
    """Runs the parts that are not finished, and evaluates the final policy.

    The recipe's key `final_split` selects the split on which the final policy is evaluated.
    """
    data, model_config, config = parse(KINDS, argv, "align3gr")
    show_progress()
    start = model_config.model_name_or_path
    if start is None and data.supervised is None:
        raise ValueError(
            "there is no policy to start from; give model_name_or_path (such as the output folder of trl-rec bear), "
            "or the section 'supervised'"
        )

    # 1. Read and check all sections of the recipe before any work starts.
    stages = align3gr_stages() if data.stages is None else read_stages(data.stages)
    ids = None if data.tokenize is None else parse_section(DualIdsConfig, data.tokenize, "align3gr: tokenize")
    continue_prior(config, start)
    supervised = None if data.supervised is None else _supervised_config(data.supervised, config)
    dataset = load(data.dataset)
    schedule = Schedule(
        dataset,
        config,
        keep=data.keep,
        adapter=get_peft_config(model_config),
        model_options=loading_options(model_config, config.trust_remote_code),
        recipe=given(argv, data, model_config),
    )
    check_pipeline(stages, schedule, supervised)

    # 2. Run the parts that are not finished.
    if ids is not None:
        dataset = give_ids(dataset, ids, overwrite=data.overwrite_ids)
    dataset = dataset.with_surface(data.surface)
    if supervised is not None:
        start = learn_supervised(dataset, supervised, model_config)
    align(stages, start, replace(schedule, dataset=dataset))
    end_processes(PartialState().destroy_process_group)


def _supervised_config(section: dict[str, Any], config: SoftmaxDPOConfig) -> BearConfig:
    """Returns the configuration of the supervised part.

    Fields in `COMMON` that the section does not set are copied from `config`, the configuration of the stages.
    """
    if section.get("prior", "none") != "none":
        raise ValueError("align3gr: supervised: prior has no effect in this section; set prior outside this section")
    common: dict[str, Any] = {"output_dir": f"{config.output_dir}/supervised", "prior": "none"}
    common |= {name: getattr(config, name) for name in COMMON}
    return parse_section(BearConfig, common | section, "align3gr: supervised")


if __name__ == "__main__":
    run("align3gr", main, sys.argv[1:])
