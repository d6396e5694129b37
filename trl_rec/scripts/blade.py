"""`trl-rec blade`: align a policy that writes lists to rewards of whole lists, then measure it beside the
baselines."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from peft import PeftModel
from trl import ModelConfig, get_peft_config

from trl_rec.data import load
from trl_rec.models import load_model, load_policy, load_tokenizer, loading_options
from trl_rec.scripts.parsing import parse, run
from trl_rec.trainer import BladeConfig, BladeTrainer, conclude


@dataclass
class DataArguments:
    """Which data, and how items are written."""

    dataset: str = field(metadata={"help": "dataset folder"})
    surface: str = field(default="item_token", metadata={"help": "title, item_token or semantic_id"})


def main(argv: list[str]) -> None:
    """Trains, saves, and writes `metrics.json` for the test split."""
    data, model_config, config = parse((DataArguments, ModelConfig, BladeConfig), argv, "blade")
    name, adapter = model_config.model_name_or_path, get_peft_config(model_config)
    if name is None:
        raise ValueError("no policy to begin with; give model_name_or_path, a folder that trl-rec bear has written")
    options = loading_options(model_config, config.trust_remote_code)
    dataset, policy = load(data.dataset).with_surface(data.surface), load_policy(name, **options)
    own_reference = isinstance(policy, PeftModel) or adapter is not None
    trainer = BladeTrainer(
        policy,
        None if own_reference else load_model(name, **options),
        config,
        train_dataset=dataset.train,
        eval_dataset=dataset.validation,
        processing_class=load_tokenizer(name, trust_remote_code=config.trust_remote_code or None),
        catalog=dataset.catalog,
        peft_config=adapter,
    )
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    conclude(trainer, dataset, {**vars(data), **vars(model_config)}, rewards=trainer.reward_weights)
    trainer.end()


if __name__ == "__main__":
    run("blade", main, sys.argv[1:])
