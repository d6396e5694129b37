"""Compares BLADE with its special cases and controls, starting from one policy that writes lists, over several seeds.

    python benchmarks/blade_arms.py DATASET_FOLDER POLICY_FOLDER OUTPUT_FOLDER [--rewards ndcg=1 mgu=4] [--seeds 0 1 2]
        [--max_steps 300] [--rates 1e-4 3e-4 1e-3] [--beta 1]

The policy writes item tokens (`trl-rec bear --config bear/ml-100k-lists`). Every arm has the same steps, prompts and
rollouts. Its learning rate is the best of `--rates` by validation reward, after half the steps with the first seed.
`reward` (GRPO), `best_of_n` and `blade` run with all seeds, the other arms with the first.

Controls:

- `best_of_n, N 15.6`: the static target at the N whose optimum is as good as BLADE's at tau .3 and N 8 (see
  `docs/methods.md`). It shows whether a gain comes only from a larger N.
- `offline`: supervised training on the best reference list of each prompt.
- The best of 8 lists that the supervised policy samples, chosen with knowledge of the answer.

The table compares greedy lists, and the reward of lists sampled at temperature 1, which training optimises. Use one
OUTPUT_FOLDER for each choice of rewards and beta. Results are saved there, and the same call resumes an interrupted
study. Two SVG files show the training signal over the steps and over the KL.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
from datasets import disable_progress_bars
from studies import SMALL, kept

from trl_rec import BearConfig, BearTrainer, BladeConfig, BladeTrainer, RecDataset, load
from trl_rec.data.dataset import split_rows
from trl_rec.evaluation import (
    compare,
    comparison_table,
    draw_lists,
    evaluate_baselines,
    evaluate_best_of,
    evaluate_split,
    score_split,
)
from trl_rec.models import load_model, load_tokenizer


SEEDED = ("reward", "best_of_n", "blade .3")
ARMS: dict[str, dict[str, Any]] = {
    "reward": {"target": "reward", "num_references": 0},
    "best_of_n": {"target": "best_of_n"},
    "best_of_n, N 15.6": {"target": "best_of_n", "best_of": 15.6},
    "rank": {"target": "rank", "num_references": 0},
    "blade .1": {"dynamic_coefficient": 0.1},
    "blade .3": {"dynamic_coefficient": 0.3},
    "blade .5": {"dynamic_coefficient": 0.5},
    "offline": {},
}
SHARED = {**SMALL, "eval_strategy": "no", "save_strategy": "no", "list_length": 10, "max_length": 128}
NUM_SAMPLED = 8  # lists per user, sampled at temperature 1


class Study:
    """Runs the arms, or loads the results that an earlier call saved."""

    def __init__(
        self, dataset: RecDataset, policy: Path, output: Path, rewards: dict[str, float], beta: float | None
    ) -> None:
        self.dataset = dataset
        self.policy = policy
        self.output = output
        self.rewards = rewards
        self.beta = {} if beta is None else {"beta": beta}
        self.tokenizer = load_tokenizer(policy)

    def run(self, name: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
        """The measures of one run (see `measure`) and its log."""
        file = self.output / f"{name.replace(' ', '').replace(',', '-')}-{rate:g}-{seed}-{steps}.json"

        def work() -> dict[str, Any]:
            trainer = self._blade(name, rate, seed, steps)
            if name == "offline":
                trainer = self._offline(trainer, rate, seed, steps)
            trainer.train()
            result = {**self.measure(trainer), "log": trainer.state.log_history}
            print(f"{file.stem}: validation reward {np.mean(result['validation']):.4f}", flush=True)
            return result

        return kept(file, work)

    def _blade(self, name: str, rate: float, seed: int, steps: int) -> BladeTrainer:
        options = {**SHARED, "per_device_train_batch_size": 8, **({} if name == "reward" else self.beta), **ARMS[name]}
        config = BladeConfig(
            str(self.output / "references"),  # shared, so that all arms of a seed use the same lists
            **options,
            rewards=self.rewards,
            learning_rate=rate,
            max_steps=steps,
            max_prompts=8 * steps,
            warmup_steps=10,
            logging_steps=10,
            seed=seed,
        )
        return BladeTrainer(load_model(self.policy), args=config, train_dataset=self.dataset.train, **self._common())

    def _offline(self, blade: BladeTrainer, rate: float, seed: int, steps: int) -> BearTrainer:
        """A trainer on the best reference lists, for the same number of prompts and steps."""
        rows = blade.best_reference_rows()  # must precede the next config, which resets the accelerator's state
        options = {
            **SHARED,
            "per_device_train_batch_size": 8,
            "bear_weight": 0,
            "logging_steps": 10,
            "warmup_steps": 10,
        }
        config = BearConfig(str(self.output / "offline"), **options, learning_rate=rate, max_steps=steps, seed=seed)
        return BearTrainer(load_model(self.policy), config, train_dataset=rows, **self._common())

    def _common(self) -> dict[str, Any]:
        return {"processing_class": self.tokenizer, "catalog": self.dataset.catalog}

    def measure(self, trainer: Any) -> dict[str, Any]:
        """Greedy test lists, the validation reward per user, and the test rewards of sampled lists."""
        result: dict[str, Any] = {"test": trainer.rank(self.dataset.test).items.tolist()}
        ranked = trainer.rank(self.dataset.validation).items
        result["validation"] = self.reward(ranked[:, None], self.dataset.validation)[:, 0].tolist()

        start = time.perf_counter()
        sampled = draw_lists(
            trainer.model,
            split_rows(self.dataset.test, "history"),
            trainer.prompt_format,
            trainer.trie,
            num_lists=NUM_SAMPLED,
            pad_token_id=self.tokenizer.pad_token_id,
            batch_size=64,
            max_length=SHARED["max_length"],
        )
        result["seconds_to_draw"] = time.perf_counter() - start
        result["drawn"] = self.reward(sampled, self.dataset.test).mean(1).tolist()
        best = evaluate_best_of(sampled, self.dataset, self.rewards, best_of=NUM_SAMPLED)
        result["best_of_drawn"] = {name: values.tolist() for name, values in best.per_user.items()}
        return result

    def reward(self, lists: np.ndarray, rows: Any) -> np.ndarray:
        """The reward of each list, `(B, G)`."""
        return score_split(lists, rows, self.dataset.catalog, self.rewards).total

    def best_rate(self, name: str, rates: list[float], steps: int) -> float:
        """The best learning rate by the validation reward of greedy lists, with the first seed and half the steps."""
        scores = {rate: float(np.mean(self.run(name, rate, 0, steps // 2)["validation"])) for rate in rates}
        print(f"{name}: {scores}", flush=True)
        return max(scores, key=lambda rate: scores[rate])

    def per_user(self, result: dict[str, Any]) -> dict[str, np.ndarray]:
        """The values per user that the table shows of a run."""
        lists = np.array(result["test"])
        evaluation = evaluate_split(lists, self.dataset, ks=[10], rewards=self.rewards)
        weights = {"ild": 1.0, "mgu": 1.0}
        parts = score_split(lists[:, None], self.dataset.test, self.dataset.catalog, weights).parts
        extra = {"ild": parts["ild"][:, 0], "mgu": -parts["mgu"][:, 0], "sampled reward": np.array(result["drawn"])}
        return {**evaluation.per_user, **extra}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("policy", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rewards", nargs="+", default=["ndcg=1", "mgu=4"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--beta", type=float, help="weight of the KL in all arms except GRPO; 1 by default")
    arguments = parser.parse_args()
    disable_progress_bars()

    # 1. Measure the supervised policy.
    rewards = {name: float(weight) for name, weight in (one.split("=") for one in arguments.rewards)}
    dataset = load(arguments.dataset).with_surface("item_token")
    study = Study(dataset, arguments.policy, arguments.output, rewards, arguments.beta)
    before = kept(arguments.output / "SFT.json", lambda: study.measure(study._blade("best_of_n", 0.0, 0, 1)))

    # 2. Choose each arm's learning rate, and run it.
    results: dict[str, list[dict[str, Any]]] = {"SFT": [before]}
    for name in arguments.arms:
        rate = study.best_rate(name, arguments.rates, arguments.max_steps)
        seeds = arguments.seeds if name in SEEDED else arguments.seeds[:1]
        results[name] = [study.run(name, rate, seed, arguments.max_steps) for seed in seeds]

    # 3. Print the table, the baselines, and Best-of-N at inference.
    runs = {name: [study.per_user(result) for result in by_seed] for name, by_seed in results.items()}
    metrics = ["recall@10", "ndcg@10", "ild", "mgu", "sampled reward", "reward"]
    compared = compare(runs, against="SFT", metric="reward")
    print("\n" + comparison_table(runs, compared, metrics=metrics))
    for name, baseline in evaluate_baselines(dataset, ks=[10], rewards=rewards).items():
        print(
            f"{name}: "
            + ", ".join(f"{metric} {baseline.metrics[metric]:.4f}" for metric in ("recall@10", "ndcg@10", "reward"))
        )
    best = {name: float(np.mean(values)) for name, values in before["best_of_drawn"].items()}
    print(
        f"SFT, the best of {NUM_SAMPLED} sampled lists: {best}; "
        f"{before['seconds_to_draw']:.0f} s for {dataset.test.num_rows} users"
    )


if __name__ == "__main__":
    main()
