"""`trl-rec bear`: fine-tune a recommender so that each target token stays inside the beam, then measure it beside the
baselines."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from trl_rec.data import load
from trl_rec.models import RecModelConfig
from trl_rec.scripts.parsing import parse, run
from trl_rec.trainer import BearConfig, build_bear_trainer, conclude


@dataclass
class DataArguments:
    """Which data, and how items are written."""

    dataset: str = field(metadata={"help": "dataset folder"})
    surface: str = field(default="item_token", metadata={"help": "title, item_token or semantic_id"})


def main(argv: list[str]) -> None:
    """Trains, saves, and writes `metrics.json` for the test split."""
    data, model_config, config = parse((DataArguments, RecModelConfig, BearConfig), argv, "bear")
    dataset = load(data.dataset).with_surface(data.surface)
    trainer = build_bear_trainer(dataset, config, model_config)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    conclude(trainer, dataset, {**vars(data), **vars(model_config)})
    trainer.end()


if __name__ == "__main__":
    run("bear", main, sys.argv[1:])
