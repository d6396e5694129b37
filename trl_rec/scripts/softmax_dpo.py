"""`trl-rec softmax_dpo`: DPO with any number of rejected completions a prompt, on texts, conversations or items."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from peft import PeftModel
from trl import ModelConfig, get_peft_config

from trl_rec.data import load
from trl_rec.models import load_model, load_policy, load_tokenizer, loading_options
from trl_rec.schedule import check_preference_leaks
from trl_rec.scripts.parsing import parse, run
from trl_rec.trainer import SoftmaxDPOConfig, SoftmaxDPOTrainer, conclude, save_run
from trl_rec.trainer.softmax_dpo.rows import read_preferences


@dataclass
class PreferenceArguments:
    """Which preferences. With a dataset folder their items are its catalogue's, and its users are ranked."""

    preferences: str = field(
        metadata={"help": "file or hub id: prompt, chosen, rejected; or history, chosen, rejected (ids)"}
    )
    eval_preferences: str | None = field(default=None, metadata={"help": "the same, to measure the loss on"})
    dataset: str | None = field(default=None, metadata={"help": "dataset folder, where completions are items"})
    surface: str = field(default="title", metadata={"help": "title, item_token or semantic_id"})


def main(argv: list[str]) -> None:
    """Trains and saves; with a dataset it also writes `metrics.json` for the test split."""
    data, model_config, config = parse((PreferenceArguments, ModelConfig, SoftmaxDPOConfig), argv, "softmax_dpo")
    name, adapter = model_config.model_name_or_path, get_peft_config(model_config)
    options = loading_options(model_config, config.trust_remote_code)
    if name is None:
        raise ValueError("no policy to begin with; give model_name_or_path")
    dataset = None if data.dataset is None else load(data.dataset).with_surface(data.surface)
    catalog = None if dataset is None else dataset.catalog
    held_out = None if dataset is None else dataset.validation
    preferences = read_preferences(data.preferences, catalog)
    if dataset is not None and {"user", "history"} <= set(preferences.column_names):
        check_preference_leaks(preferences, dataset, feedback=False)
    policy = load_policy(name, **options)
    own_reference = isinstance(policy, PeftModel) or adapter is not None or config.precompute_ref_log_probs
    trainer = SoftmaxDPOTrainer(
        policy,
        None if own_reference else load_model(name, **options),
        config,
        train_dataset=preferences,
        eval_dataset=held_out if data.eval_preferences is None else read_preferences(data.eval_preferences, catalog),
        processing_class=load_tokenizer(name, trust_remote_code=config.trust_remote_code or None),
        catalog=catalog,
        peft_config=adapter,
    )
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    settings = {**vars(data), **vars(model_config)}
    if dataset is None:
        save_run(trainer, settings)
    else:
        conclude(trainer, dataset, settings)
    trainer.end()


if __name__ == "__main__":
    run("softmax_dpo", main, sys.argv[1:])
