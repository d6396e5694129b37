"""Compares random negatives, self-play and the progressive stages with SFT and the transition baseline.

    python benchmarks/preference_arms.py DATASET_FOLDER POLICY_FOLDER OUTPUT_FOLDER [--seeds 0 1 2] [--prompts 3000]

All arms start from one policy that writes semantic IDs (`trl-rec tokenize`, `trl-rec bear --config
bear/ml-100k-semantic`), and run with several seeds. All arms see the same number of prompts: three stages of
`--prompts` each, or one stage of three times as many. Feedback continues from the progressive self-play for two more
stages.

Learning rate and `sft_weight` are each arm's best of `--settings`, by validation with the first seed. Every stage
keeps its best checkpoint by validation, or is undone. Results are saved in OUTPUT_FOLDER, and the same call resumes an
interrupted study. Intervals are over users, of each user's mean over the seeds.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
from studies import SMALL, kept

from trl_rec import PreferenceStage, RecDataset, Schedule, SoftmaxDPOConfig, load, run_stages
from trl_rec.data.prompts import PromptFormat
from trl_rec.evaluation import compare, comparison_table, evaluate_baselines, evaluate_split, rank_split
from trl_rec.models import load_model, load_tokenizer


MAX_LENGTH = 256


def arms(prompts: int) -> dict[str, tuple[str | None, list[PreferenceStage]]]:
    """For each arm: the arm that it continues from (None for the supervised policy), and its stages."""
    beams = {"max_prompts": prompts, "num_beams": 20}
    progressive = [PreferenceStage("self_play", difficulty, **beams) for difficulty in ("easy", "medium", "hard")]
    return {
        "random": (None, [PreferenceStage("random", max_prompts=3 * prompts)]),
        "self-play": (None, [PreferenceStage("self_play", "any", max_prompts=3 * prompts, num_beams=20)]),
        "progressive SP": (None, progressive),
        "SP + RF": (
            "progressive SP",
            [PreferenceStage("feedback", level, max_prompts=prompts) for level in ("easy", "hard")],
        ),
    }


def run(
    name: str, stages: list[PreferenceStage], start: Path, dataset: RecDataset, output: Path, seed: int, **options: Any
) -> list[dict[str, Any]]:
    config = SoftmaxDPOConfig(
        str(output),
        **SMALL,
        **options,
        normalize="catalogue",
        num_train_epochs=1,
        warmup_steps=10,
        max_length=MAX_LENGTH,
        eval_steps=0.5,
        save_strategy="steps",
        save_steps=0.5,
        save_total_limit=1,
        logging_steps=20,
        seed=seed,
    )
    reports = run_stages(stages, start, Schedule(dataset, config))
    before = reports[0]["before"]["eval_ndcg@10"]
    after = ", ".join(f"{stage['name']} {stage['after'].get('eval_ndcg@10', float('nan')):.4f}" for stage in reports)
    print(f"{name}, seed {seed}, {options}: validation {before:.4f} -> {after}", flush=True)
    return reports


def measure(folder: Path, dataset: RecDataset, output: Path) -> Any:
    """Test values per user of the policy in `folder`. Its lists are saved in `output`."""

    def rank() -> list[list[int]]:
        model = load_model(folder)
        tokenizer = load_tokenizer(folder)
        prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer)
        options = {"prompt_format": prompt_format, "batch_size": 128, "max_length": MAX_LENGTH}
        return rank_split(model, tokenizer, dataset, **options).items.tolist()

    return evaluate_split(np.array(kept(output / "test.json", rank)), dataset, ks=[10]).per_user


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("policy", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=3000)
    parser.add_argument(
        "--settings", nargs="+", default=["1e-5:0", "3e-5:0", "3e-5:1", "1e-4:1"], help="learning rate:sft weight"
    )
    arguments = parser.parse_args()
    dataset = load(arguments.dataset).with_surface("semantic_id")
    seeds = arguments.seeds
    all_arms = arms(arguments.prompts)

    def folder(name: str, setting: tuple[float, float], seed: int) -> Path:
        return arguments.output / f"{name.replace(' ', '')}-{setting[0]:g}-{setting[1]:g}-{seed}"

    settings = [tuple(map(float, setting.split(":"))) for setting in arguments.settings]
    chosen: dict[str, tuple[float, float]] = {}

    def result(name: str, setting: tuple[float, float], seed: int) -> float:
        """Validation NDCG@10 of the policy that an arm ends with. Runs the arm if needed."""
        before, stages = all_arms[name]
        start = arguments.policy if before is None else folder(before, chosen[before], seed)
        options = {"learning_rate": setting[0], "sft_weight": setting[1]}
        last = run(name, stages, start, dataset, folder(name, setting, seed), seed, **options)[-1]
        return last["after" if last["kept"] else "before"]["eval_ndcg@10"]

    # 1. Choose each arm's setting by validation, then run it with all seeds.
    validation = {}
    for name in all_arms:
        scores = {setting: result(name, setting, seeds[0]) for setting in settings}
        chosen[name] = max(scores, key=lambda setting: scores[setting])
        print(f"{name}: validation by learning rate and sft_weight: {scores}; chosen: {chosen[name]}", flush=True)
        validation[name] = float(np.mean([result(name, chosen[name], seed) for seed in seeds]))

    # 2. Measure the policies on the test split.
    runs = {
        "transition": [evaluate_baselines(dataset, ks=[10])["transition"].per_user],
        "SFT": [measure(arguments.policy, dataset, arguments.output / "SFT")],
    }
    for name in all_arms:
        folders = [folder(name, chosen[name], seed) for seed in seeds]
        runs[name] = [measure(path, dataset, path) for path in folders]
    compared = compare(runs, against="SFT", metric="ndcg@10")
    print("\n" + comparison_table(runs, compared, metrics=["recall@10"], notes={"validation": validation}))


if __name__ == "__main__":
    main()
