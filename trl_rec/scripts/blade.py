"""`trl-rec blade`: trains a model to write lists, with rewards for whole lists, and evaluates the trained model."""

from __future__ import annotations

import sys

from trl import ModelConfig

from trl_rec.data import load
from trl_rec.scripts.options.parsing import DataArguments, given, parse
from trl_rec.scripts.running import run
from trl_rec.trainer import BladeConfig, announce_cost, announce_tokens, build_blade_trainer, conclude


KINDS = (DataArguments, ModelConfig, BladeConfig)


def main(argv: list[str]) -> None:
    """Trains and saves a model, evaluates it on the split that `final_split` selects, and writes `metrics.json`."""
    data, model_config, config = parse(KINDS, argv, "blade")

    dataset = load(data.dataset).with_surface(data.surface)
    trainer = build_blade_trainer(dataset, config, model_config)
    announce_tokens(trainer, dataset)
    announce_cost(trainer, dataset)
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    settings = {**vars(data), **vars(model_config)}
    recipe = given(argv, data, model_config)
    conclude(
        trainer,
        dataset,
        settings,
        recipe=recipe,
        rewards=trainer.reward_weights,
        reward_functions=trainer.rewards.functions,
    )
    trainer.end()


if __name__ == "__main__":
    run("blade", main, sys.argv[1:])
