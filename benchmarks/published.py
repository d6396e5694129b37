"""Compares a decoder from scratch on Amazon Beauty's semantic IDs with the baselines and with published figures.

    trl-rec prepare --format lcrec --source FOLDER --output_dir data/beauty
    python benchmarks/published.py data/beauty runs/published [--text_encoder words] [--num_train_epochs 40]

It runs the recipe `bear/beauty-semantic`, whose keys can be overridden. A copy of the data gets IDs of the dual method
with its defaults. The best checkpoint by validation NDCG@10 is measured on the test split, with and without excluding
the history. The validation curve is printed. Results are saved, and the same call resumes an
interrupted run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
from studies import kept

from trl_rec import BearConfig, RecDataset, load
from trl_rec.data import PromptFormat
from trl_rec.evaluation import evaluate_baselines, evaluate_split, metrics_table, rank_split
from trl_rec.files import atomic_folder
from trl_rec.models import RecModelConfig, load_model, load_tokenizer
from trl_rec.schedule import learn_supervised
from trl_rec.scripts.bear import DataArguments
from trl_rec.scripts.parsing import parse
from trl_rec.semantic_ids import DualIdsConfig, make_dual_ids, read_ids_card


# Also leave-one-out on 5-core Beauty. Protocols differ in details, so these give an order of magnitude.
PUBLISHED = {"TIGER, as its authors print": (0.0648, 0.0384), "LC-Rec, as reproduced by others": (0.0791, 0.0438)}
# Keys of the recipe that an arm overrides.
ARMS: dict[str, dict[str, str]] = {
    "one token per item": {
        "surface": "item_token",
        "max_length": "22",
    },  # about as many items as with three tokens each
    "dual IDs": {},
    "dual IDs, users named": {"prompt_head": "{user}"},
}


def settings(name: str, output: Path, overrides: list[str]) -> tuple[DataArguments, RecModelConfig, BearConfig]:
    """The recipe with the arm's keys and the given overrides."""
    folder = output / name.replace(",", "").replace(" ", "-")
    keys = {**ARMS[name], "dataset": str(output / "data"), "output_dir": str(folder)}
    given = [part for key, value in keys.items() for part in (f"--{key}", value)]
    kinds = (DataArguments, RecModelConfig, BearConfig)
    return parse(kinds, ["--config", "bear/beauty-semantic", *given, *overrides], "bear")


def rank(folder: Path, dataset: RecDataset, config: BearConfig) -> dict[str, Any]:
    """The policy's lists for the test split, with and without excluding the history."""
    model = load_model(folder)
    tokenizer = load_tokenizer(folder)
    options: dict[str, Any] = {
        "prompt_format": PromptFormat.for_catalog(dataset.catalog, tokenizer, **config.prompt_options),
        "max_length": config.max_length,
        "batch_size": config.per_device_eval_batch_size,
        "num_beams": config.eval_num_beams or 20,
        "length_penalty": config.eval_length_penalty,
        "renormalize": config.softmax == "legal",
    }
    return {
        name: rank_split(model, tokenizer, dataset, exclude_history=exclude, **options).items.tolist()
        for name, exclude in (("excluded", True), ("not excluded", False))
    }


def with_ids(source: str, folder: Path, config: DualIdsConfig) -> RecDataset:
    """A copy of the data with these IDs."""
    if not folder.is_dir():
        with atomic_folder(folder) as copy:
            shutil.copytree(source, copy, dirs_exist_ok=True)
    came_with_data = read_ids_card(folder) is None  # our IDs have a card
    return make_dual_ids(load(folder), config, overwrite=came_with_data)


def logged(folder: Path) -> list[dict[str, Any]]:
    """The log of the policy's training."""
    return [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("output", type=Path)
    parser.add_argument("--text_encoder", default="words")
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    arguments, overrides = parser.parse_known_args()

    # 1. Parse all recipes first, so that a wrong key fails at once. Then make the IDs.
    recipes = {name: settings(name, arguments.output, overrides) for name in arguments.arms}
    ids = DualIdsConfig(text_encoder=arguments.text_encoder, codes=arguments.codes)
    dataset = with_ids(arguments.dataset, arguments.output / "data", ids)

    # 2. Train and rank.
    lists = {}
    curves = {}
    for name, (data, model_config, config) in recipes.items():
        surfaced = dataset.with_surface(data.surface)
        folder = learn_supervised(surfaced, config, model_config)
        lists[name] = kept(folder / "lists.json", partial(rank, folder, surfaced, config))
        log = logged(folder)
        curves[name] = [(entry["epoch"], entry["eval_ndcg@10"]) for entry in log if "eval_ndcg@10" in entry]

    # 3. Print the tables and the published figures, and the validation curves.
    for history in ("excluded", "not excluded"):
        results = evaluate_baselines(dataset, ks=[10], exclude_history=history == "excluded")
        results |= {
            name: evaluate_split(np.array(ranked[history]), dataset, ks=[10]) for name, ranked in lists.items()
        }
        print(metrics_table(results, columns=["recall@10", "ndcg@10"], caption=f"test split, history {history}"), "\n")
    for name, (recall, ndcg) in PUBLISHED.items():
        print(f"{name}: recall@10 {recall}, ndcg@10 {ndcg}")
    for name, curve in curves.items():
        print(f"{name}:", ", ".join(f"{epoch:.0f}: {value:.4f}" for epoch, value in curve))


if __name__ == "__main__":
    main()
