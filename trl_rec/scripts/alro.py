"""`trl-rec alro`: fine-tune a model to put a user's rated candidates in order, then measure it beside the floors."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from trl_rec.data import load, rating_values
from trl_rec.models import RecModelConfig
from trl_rec.scripts.parsing import parse, run
from trl_rec.trainer import AlroConfig, AlroTrainer, build_ranker, conclude_ranking


@dataclass
class RatedDataArguments:
    """Which data, and how items are written."""

    dataset: str = field(metadata={"help": "dataset folder with ratings, split leave_last or time"})
    surface: str = field(default="item_token", metadata={"help": "title, item_token or semantic_id"})


def main(argv: list[str]) -> None:
    """Trains, saves, and writes `metrics.json` for the test split."""
    data, model_config, config = parse((RatedDataArguments, RecModelConfig, AlroConfig), argv, "alro")
    dataset = load(data.dataset).with_surface(data.surface)
    model, tokenizer, adapter = build_ranker(
        dataset.catalog,
        rating_values(dataset.train),
        model_config,
        letters=config.letters,
        max_length=config.max_length,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
    )
    trainer = AlroTrainer(
        model,
        config,
        train_dataset=dataset.train,
        eval_dataset=dataset.validation,
        processing_class=tokenizer,
        catalog=dataset.catalog,
        peft_config=adapter,
    )
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    conclude_ranking(trainer, dataset, {**vars(data), **vars(model_config)})
    trainer.end()


if __name__ == "__main__":
    run("alro", main, sys.argv[1:])
