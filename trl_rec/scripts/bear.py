"""`trl-rec bear`: trains a recommender with BEAR, and compares it with the baselines."""

from __future__ import annotations

import sys

from trl_rec.data import load
from trl_rec.models import RecModelConfig
from trl_rec.scripts.options.parsing import DataArguments, given, parse, show_progress
from trl_rec.scripts.running import run
from trl_rec.trainer import BearConfig, announce_cost, announce_tokens, build_bear_trainer, conclude


KINDS = (DataArguments, RecModelConfig, BearConfig)


def main(argv: list[str]) -> None:
    """Trains, saves and evaluates a model, and writes `metrics.json`.

    The option `final_split` selects the split of the evaluation.
    """
    data, model_config, config = parse(KINDS, argv, "bear")
    show_progress()

    dataset = load(data.dataset).with_surface(data.surface)
    trainer = build_bear_trainer(dataset, config, model_config)
    announce_tokens(trainer, dataset)
    announce_cost(trainer, dataset)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    settings = {**vars(data), **vars(model_config)}
    conclude(trainer, dataset, settings, recipe=given(argv, data, model_config))
    trainer.end()


if __name__ == "__main__":
    run("bear", main, sys.argv[1:])
