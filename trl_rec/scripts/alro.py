"""`trl-rec alro`: fine-tunes a model to order a user's rated candidates, and compares it with the baselines."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from trl_rec.data import load
from trl_rec.models import RecModelConfig
from trl_rec.scripts.options.parsing import given, parse, show_progress
from trl_rec.scripts.running import run
from trl_rec.trainer import AlroConfig, RatingStageConfig, announce_cost, build_alro_trainer, conclude_ranking


@dataclass
class RatedDataArguments:
    """Arguments for the data and for how items are written."""

    dataset: str = field(
        metadata={"help": "dataset folder with ratings, prepared with split=leave_last or split=time"}
    )
    surface: str = field(
        default="item_token", metadata={"help": "how items are written: title, item_token or semantic_id"}
    )


KINDS = (RatedDataArguments, RecModelConfig, RatingStageConfig, AlroConfig)


def main(argv: list[str]) -> None:
    """Trains and saves a model, evaluates it on the split that `final_split` selects, and writes `metrics.json`."""
    data, model_config, rating, config = parse(KINDS, argv, "alro")
    show_progress()

    dataset = load(data.dataset).with_surface(data.surface)
    trainer = build_alro_trainer(dataset, config, model_config, rating)
    announce_cost(trainer, dataset)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    settings = {**vars(data), **vars(model_config), **vars(rating)}
    conclude_ranking(trainer, dataset, settings, recipe=given(argv, data, model_config, rating))
    trainer.end()


if __name__ == "__main__":
    run("alro", main, sys.argv[1:])
