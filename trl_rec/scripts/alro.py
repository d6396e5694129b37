"""`trl-rec alro`: fine-tune a model to put a user's rated candidates in order, then measure it beside the
baselines."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from trl_rec.data import load
from trl_rec.decoding import RatedPromptFormat
from trl_rec.models import RecModelConfig
from trl_rec.scripts.parsing import parse, run, tell_progress
from trl_rec.trainer import (
    AlroConfig,
    AlroTrainer,
    RatingStageConfig,
    build_ranker,
    check_rankable,
    conclude_ranking,
    learn_ratings,
    rating_values,
)


@dataclass
class RatedDataArguments:
    """Which data, and how items are written."""

    dataset: str = field(metadata={"help": "dataset folder with ratings, split leave_last or time"})
    surface: str = field(default="item_token", metadata={"help": "title, item_token or semantic_id"})


def main(argv: list[str]) -> None:
    """Trains, saves, and writes `metrics.json` for the test split."""
    kinds = (RatedDataArguments, RecModelConfig, RatingStageConfig, AlroConfig)
    data, model_config, stage, config = parse(kinds, argv, "alro")
    tell_progress()
    if stage.rating_epochs and model_config.model_name_or_path is not None:
        raise ValueError("rating_epochs are for a model from scratch; leave them out, or model_name_or_path")
    dataset = load(data.dataset).with_surface(data.surface)
    ratings = rating_values(dataset.train)
    model, tokenizer, adapter = build_ranker(
        dataset.catalog,
        ratings,
        model_config,
        letters=config.letters,
        max_length=config.max_length,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
    )
    prompt_format = RatedPromptFormat.for_catalog(dataset.catalog, tokenizer, ratings, **config.prompt_options)
    check_rankable(dataset, prompt_format, config)
    if stage.rating_epochs:
        folder = Path(str(config.output_dir)) / "rating"
        model = learn_ratings(model, tokenizer, prompt_format, dataset, folder, **stage.options(config))
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
    conclude_ranking(trainer, dataset, {**vars(data), **vars(model_config), **vars(stage)})
    trainer.end()


if __name__ == "__main__":
    run("alro", main, sys.argv[1:])
