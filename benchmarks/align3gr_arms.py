"""Compares Align3GR's parts: inputs of the IDs, users in prompts, several tasks, and the preference stages.

    python benchmarks/align3gr_arms.py DATASET_FOLDER OUTPUT_FOLDER [--text_encoder words] [--codes 32] [--seeds 0 1 2]
        [--arms ...] [--against "item tokens"] [--epochs 16]

Every arm trains the same small model from scratch, for the same number of passes over the next items. It keeps its
best checkpoint by validation NDCG@10. The test split compares the arms with the baselines and with a model that has
one token per item.

The arms that test the paper's claims (`SEEDED`) run with all seeds, the others with the first. IDs are made once, with
seed 0. Results are saved in OUTPUT_FOLDER, and the same call resumes an interrupted study.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
from datasets import disable_progress_bars
from studies import SMALL, kept

from trl_rec import BearConfig, RecDataset, Schedule, SoftmaxDPOConfig, load
from trl_rec.data import PromptFormat
from trl_rec.evaluation import compare, comparison_table, evaluate_baselines, evaluate_split, rank_split
from trl_rec.files import atomic_file, atomic_folder
from trl_rec.models import RecModelConfig, load_model, load_tokenizer
from trl_rec.schedule import align3gr_stages, learn_supervised, run_stages
from trl_rec.semantic_ids import DualIdsConfig, make_dual_ids, make_semantic_ids, read_ids_card


MAX_LENGTH = 256
TASKS = {
    "next_item": 1.0,
    "item_to_id": 0.25,
    "id_to_item": 0.25,
    "history_to_title": 0.25,
    "titles_to_id": 0.25,
    "profile_to_user": 0.125,
    "user_to_profile": 0.125,
    "query_to_item": 0.25,
    "history_to_preference": 0.25,
}
# Rows of different tasks differ in length, so a step sorts its sixteen rows by length and splits them in four.
TASK_OPTIONS: dict[str, Any] = {
    "task_history": 10,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "train_sampling_strategy": "batch_rebalance",
}


@dataclass(frozen=True)
class Arm:
    """How one arm differs from the others.

    Args:
        ids (`dict`, *optional*): Fields of `DualIdsConfig`. None means one token per item; an empty dict means k-means
            of co-occurrence.
        users (`bool`): Whether prompts name users.
        tasks (`bool`): Whether the model learns other tasks besides the next item.
    """

    ids: dict[str, Any] | None = field(default_factory=dict)
    users: bool = False
    tasks: bool = False


ARMS = {
    "item tokens": Arm(None),
    "k-means of co-occurrence": Arm({}),
    "text": Arm({"signals": "text", "users": False}),
    "behaviour": Arm({"signals": "behaviour", "users": False}),
    "behaviour, sequential encoder": Arm({"signals": "behaviour", "users": False, "behaviour": "sequence"}),
    "text and behaviour": Arm({"users": False}),
    "dual, not aligned": Arm({"align": False}, users=True),
    "dual, users not named": Arm({"align": True}),
    "dual": Arm({"align": True}, users=True),
    "dual, tasks": Arm({"align": True}, users=True, tasks=True),
}
SEEDED = ("item tokens", "text and behaviour", "dual, not aligned", "dual", "dual, tasks")


class Study:
    """Makes IDs and trains arms, or loads those that an earlier call saved."""

    def __init__(self, source: str, output: Path, text_encoder: str, codes: int, epochs: int) -> None:
        self.source = source
        self.output = output
        self.text_encoder = text_encoder
        self.codes = codes
        self.epochs = epochs

    def dataset(self, arm: Arm) -> RecDataset:
        """A copy of the data with the arm's IDs."""
        if arm.ids is None:
            return load(self.source).with_surface("item_token")

        # Copy the data, and the vectors that other arms have already made.
        folder = self.output / f"data-{'-'.join(f'{name}={value}' for name, value in arm.ids.items()) or 'kmeans'}"
        vectors = self.output / "vectors"  # shared by all arms
        if not folder.is_dir():
            with atomic_folder(folder) as copy:
                shutil.copytree(self.source, copy, dirs_exist_ok=True)
                if vectors.is_dir():
                    shutil.copytree(vectors, copy / "vectors", dirs_exist_ok=True)

        # Make the IDs, and share the vectors that this took.
        dataset = self._with_ids(load(folder), arm.ids)
        for file in (folder / "vectors").glob("*.safetensors"):
            if not (vectors / file.name).is_file():
                with atomic_file(vectors / file.name) as copy:
                    shutil.copyfile(file, copy)
        return dataset.with_surface("semantic_id")

    def _with_ids(self, dataset: RecDataset, options: dict[str, Any]) -> RecDataset:
        if not options:
            return make_semantic_ids(dataset, codes=self.codes, overwrite=dataset.catalog.semantic_ids is None)
        texts = {} if options.get("signals") == "behaviour" else {"text_encoder": self.text_encoder}
        return make_dual_ids(dataset, DualIdsConfig(codes=self.codes, **texts, **options))

    def policy(self, name: str, seed: int) -> Path:
        """The folder of the arm's supervised policy."""
        arm = ARMS[name]
        config = BearConfig(
            str(self.output / f"{name.replace(' ', '').replace(',', '-')}-{seed}"),
            **{**SMALL, **(TASK_OPTIONS if arm.tasks else {})},
            bear_weight=0,
            targets="all",
            prompt_head="{user}" if arm.users else None,
            tasks=TASKS if arm.tasks else None,
            num_train_epochs=self.epochs,
            learning_rate=3e-3,
            weight_decay=0.1,
            warmup_steps=50,
            max_length=MAX_LENGTH,
            eval_steps=0.1,
            save_strategy="steps",
            save_steps=0.1,
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_ndcg@10",
            logging_steps=50,
            seed=seed,
        )
        return learn_supervised(self.dataset(arm), config, RecModelConfig(dropout=0.3))

    def measure(self, name: str, folder: Path) -> dict[str, Any]:
        """Test values per user, and validation NDCG@10, of the policy in `folder`."""
        dataset = self.dataset(ARMS[name])

        def rank() -> dict[str, Any]:
            model, tokenizer = load_model(folder), load_tokenizer(folder)
            head = "{user}" if ARMS[name].users else None
            prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer, prompt_head=head)
            options = {"prompt_format": prompt_format, "batch_size": 128, "max_length": MAX_LENGTH}
            lists = {
                split: rank_split(model, tokenizer, dataset, split=split, **options)
                for split in ("validation", "test")
            }
            measured = evaluate_split(lists["validation"], dataset, split="validation", ks=[10])
            print(f"{folder.name}: validation NDCG@10 {measured.metrics['ndcg@10']:.4f}", flush=True)
            return {"test": lists["test"].items.tolist(), "validation": measured.metrics["ndcg@10"]}

        ranked = kept(folder / "lists.json", rank)
        test = evaluate_split(np.array(ranked["test"]), dataset, ks=[10])
        return {**test.per_user, "validation": ranked["validation"]}

    def stages(self, name: str, start: Path, seed: int) -> Path:
        """The folder of the policy after the five preference stages."""
        arm = ARMS[name]
        output = self.output / f"stages-{start.name}"
        config = SoftmaxDPOConfig(
            str(output),
            **SMALL,
            prompt_head="{user}" if arm.users else None,
            normalize="catalogue",
            sft_weight=1.0,
            learning_rate=1e-4,
            num_train_epochs=1,
            warmup_steps=10,
            max_length=MAX_LENGTH,
            eval_steps=0.5,
            save_strategy="steps",
            save_steps=0.5,
            save_total_limit=1,
            logging_steps=50,
            seed=seed,
        )
        stages = align3gr_stages(max_prompts=3000, num_beams=20)
        for report in run_stages(stages, start, Schedule(self.dataset(arm), config)):
            print(
                f"{output.name} {report['name']}: {report['after'].get('eval_ndcg@10')}, kept {report['kept']}",
                flush=True,
            )
        return output


def print_ids(study: Study, names: list[str]) -> None:
    """Prints how good the IDs of these arms are."""
    for name in names:
        arm = ARMS[name]
        card = read_ids_card(study.dataset(arm).path) if arm.ids is not None else None
        if card is not None:
            levels = ", ".join(f"{level['perplexity']:.1f}" for level in card["levels"])
            training = card.get("training", {})
            u2i = ""
            if training.get("u2i_pairs"):
                u2i = f", U2I {training['u2i_accuracy']:.1%} of {training['u2i_pairs']}"
            distinct = {part: f"{share:.2%}" for part, share in card["distinct"].items()}
            print(f"{name}: distinct {distinct}, perplexity {levels}{u2i}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("output", type=Path)
    parser.add_argument("--text_encoder", default="words")
    parser.add_argument("--codes", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument(
        "--stages", action="store_true", help="also run the preference stages, starting from the last arm"
    )
    parser.add_argument(
        "--against", choices=list(ARMS), help="the arm to compare with; by default dual, or the first arm"
    )
    arguments = parser.parse_args()
    if arguments.against is not None and arguments.against not in arguments.arms:
        parser.error(f"--against {arguments.against!r} is not one of --arms")
    disable_progress_bars()

    # Train and measure the arms: the first seed of every arm before any second seed.
    study = Study(arguments.dataset, arguments.output, arguments.text_encoder, arguments.codes, arguments.epochs)
    runs: dict[str, list[Any]] = {}
    for round_, seed in enumerate(arguments.seeds):
        for name in arguments.arms:
            if round_ == 0 or name in SEEDED:
                runs.setdefault(name, []).append(study.measure(name, study.policy(name, seed)))
    if arguments.stages:
        name = arguments.arms[-1]
        starts = [study.policy(name, seed) for seed in arguments.seeds]
        runs[f"{name}, stages"] = [
            study.measure(name, study.stages(name, start, seed))
            for start, seed in zip(starts, arguments.seeds, strict=True)
        ]

    # Print the IDs, then the table.
    validation = {name: float(np.mean([run.pop("validation") for run in by_seed])) for name, by_seed in runs.items()}
    baselines = evaluate_baselines(load(arguments.dataset), ks=[10])
    runs = {**{name: [baselines[name].per_user] for name in ("popularity", "transition")}, **runs}
    print_ids(study, arguments.arms)
    against = arguments.against or ("dual" if "dual" in runs else arguments.arms[0])
    compared = compare(runs, against=against, metric="ndcg@10")
    print("\n" + comparison_table(runs, compared, metrics=["recall@10"], notes={"validation": validation}))


if __name__ == "__main__":
    main()
