"""`trl-rec align3gr`: preference training in stages, from the policy's own easy mistakes to what users disliked."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from accelerate import PartialState
from trl import ModelConfig, get_peft_config

from trl_rec.data import load
from trl_rec.models import loading_options
from trl_rec.schedule import Schedule, align3gr_stages, conclude_stages, read_stages, run_stages
from trl_rec.scripts.parsing import parse, run
from trl_rec.trainer import SoftmaxDPOConfig
from trl_rec.trainer.processes import end_processes


@dataclass
class ScheduleArguments:
    """Which data, and which stages. `model_name_or_path` is the supervised policy to begin with."""

    dataset: str = field(metadata={"help": "dataset folder"})
    surface: str = field(default="semantic_id", metadata={"help": "title, item_token or semantic_id"})
    stages: list[dict] | None = field(default=None, metadata={"help": "in a recipe: a list of stages; else Align3GR's five"})
    keep: str = field(default="best", metadata={"help": "best: a stage that does not help is undone; last: it is not"})


def main(argv: list[str]) -> None:
    """Runs the stages that are left, and measures the last policy on the test split."""
    data, model_config, config = parse((ScheduleArguments, ModelConfig, SoftmaxDPOConfig), argv, "align3gr")
    start = model_config.model_name_or_path
    if start is None:
        raise ValueError("no policy to begin with; give model_name_or_path, the output folder of trl-rec bear")
    schedule = Schedule(
        load(data.dataset).with_surface(data.surface),
        config,
        keep=data.keep,
        adapter=get_peft_config(model_config),
        model_options=loading_options(model_config, config.trust_remote_code),
    )
    stages = align3gr_stages() if data.stages is None else read_stages(data.stages)
    conclude_stages(run_stages(stages, start, schedule), start, schedule)
    end_processes(PartialState().destroy_process_group)


if __name__ == "__main__":
    run("align3gr", main, sys.argv[1:])
