"""BLADE beside its limits and controls, from one policy that writes lists, over several seeds.

    python benchmarks/blade_arms.py DATASET_FOLDER POLICY_FOLDER OUTPUT_FOLDER [--rewards ndcg=1 mgu=4] [--seeds 0 1 2]
        [--steps 300] [--rates 1e-4 3e-4 1e-3] [--beta 1]

The policy writes item tokens (`trl-rec bear --config bear/ml-100k-lists`). Every arm has the same steps, prompts and
rollouts. Its learning rate is the best of `--rates` by validation reward, after half the steps with the first seed.
`reward` (GRPO), `best_of_n` and `blade` run with all seeds, the other arms with the first. Besides:

- `best_of_n, N 15.6`: the static target at the N whose optimum is as good as that of BLADE at tau .3 and N 8 (see
  `docs/methods.md`), so that a gain is not only a larger N;
- `offline`: supervised training on the best of each prompt's reference lists;
- the supervised policy's own best of 8 drawn lists, chosen by those who know the answer.

Greedy lists are compared, and what a list drawn at temperature 1 is worth, which is what is optimised. Work is kept in
OUTPUT_FOLDER, one folder for each choice of rewards and beta, and a call that was interrupted goes on. Two SVG files
show the training signal over the steps and over the KL.
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
    draw_lists,
    evaluate_baselines,
    evaluate_best_of,
    evaluate_split,
    line_charts,
    logged_curve,
    score_split,
    seeds_table,
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
DRAWN = 8  # lists a user, for what a list is worth at temperature 1
PANELS = {"reward": "reward of rollouts", "blade/target_std": "deviation of the target in a group"}
PANELS |= {"blade/tied_pairs": "share of pairs that tie", "blade/quantile": "quantile among references"}


class Study:
    """Runs arms, or finds what they have left."""

    def __init__(
        self, dataset: RecDataset, policy: Path, output: Path, rewards: dict[str, float], beta: float | None
    ) -> None:
        self.dataset, self.policy, self.output, self.rewards = dataset, policy, output, rewards
        self.beta = {} if beta is None else {"beta": beta}
        self.tokenizer = load_tokenizer(policy)

    def run(self, name: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
        """Lists, what drawn lists are worth, and the log."""
        file = self.output / f"{name.replace(' ', '').replace(',', '-')}-{rate:g}-{seed}-{steps}.json"

        def work() -> dict[str, Any]:
            trainer = self._blade(name, rate, seed, steps)
            if name == "offline":
                trainer = self._offline(trainer, rate, seed, steps)
            trainer.train()
            told = {**self.measure(trainer), "log": trainer.state.log_history}
            print(f"{file.stem}: validation reward {np.mean(told['validation']):.4f}", flush=True)
            return told

        return kept(file, work)

    def _blade(self, name: str, rate: float, seed: int, steps: int) -> BladeTrainer:
        options = {**SHARED, "per_device_train_batch_size": 8, **({} if name == "reward" else self.beta), **ARMS[name]}
        config = BladeConfig(
            str(self.output / "references"),  # one folder: all arms of a seed share the lists
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
        """The same number of prompts and steps."""
        rows = blade.best_reference_rows()  # before the next config, which takes the accelerator's state away
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
        """Greedy lists of both splits, the validation reward of each user, and that of drawn lists."""
        told: dict[str, Any] = {"test": trainer.rank(self.dataset.test).tolist()}
        ranked = trainer.rank(self.dataset.validation)
        told["validation"] = self.reward(ranked[:, None], self.dataset.validation)[:, 0].tolist()
        start = time.perf_counter()
        drawn = draw_lists(
            trainer.model,
            split_rows(self.dataset.test, "history"),
            trainer.prompt_format,
            trainer.trie,
            num_lists=DRAWN,
            pad_token_id=self.tokenizer.pad_token_id,
            batch_size=64,
            max_length=SHARED["max_length"],
        )
        told["seconds_to_draw"] = time.perf_counter() - start
        told["drawn"] = self.reward(drawn, self.dataset.test).mean(1).tolist()
        best = evaluate_best_of(drawn, self.dataset, self.rewards, best_of=DRAWN)
        told["best_of_drawn"] = {name: values.tolist() for name, values in best.per_user.items()}
        return told

    def reward(self, lists: np.ndarray, rows: Any) -> np.ndarray:
        """`(B, G)`."""
        return score_split(lists, rows, self.dataset.catalog, self.rewards).total

    def best_rate(self, name: str, rates: list[float], steps: int) -> float:
        """By the validation reward of greedy lists, with the first seed and half the steps."""
        found = {rate: float(np.mean(self.run(name, rate, 0, steps // 2)["validation"])) for rate in rates}
        print(f"{name}: {found}", flush=True)
        return max(found, key=lambda rate: found[rate])

    def per_user(self, told: dict[str, Any]) -> dict[str, np.ndarray]:
        """What the table shows of a run."""
        evaluation = evaluate_split(np.array(told["test"]), self.dataset, ks=[10], rewards=self.rewards)
        parts = score_split(
            np.array(told["test"])[:, None], self.dataset.test, self.dataset.catalog, {"ild": 1.0, "mgu": 1.0}
        ).parts
        extra = {"ild": parts["ild"][:, 0], "mgu": -parts["mgu"][:, 0], "drawn reward": np.array(told["drawn"])}
        return {**evaluation.per_user, **extra}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("policy", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rewards", nargs="+", default=["ndcg=1", "mgu=4"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--beta", type=float, help="weight of the KL of all arms but GRPO, 1 by default")
    arguments = parser.parse_args()
    disable_progress_bars()
    rewards = {name: float(weight) for name, weight in (one.split("=") for one in arguments.rewards)}
    dataset = load(arguments.dataset).with_surface("item_token")
    study = Study(dataset, arguments.policy, arguments.output, rewards, arguments.beta)
    before = kept(arguments.output / "SFT.json", lambda: study.measure(study._blade("best_of_n", 0.0, 0, 1)))

    told: dict[str, list[dict[str, Any]]] = {"SFT": [before]}
    for name in arguments.arms:
        rate = study.best_rate(name, arguments.rates, arguments.steps)
        seeds = arguments.seeds if name in SEEDED else arguments.seeds[:1]
        told[name] = [study.run(name, rate, seed, arguments.steps) for seed in seeds]
    runs = {name: [study.per_user(one) for one in several] for name, several in told.items()}
    metrics = ["recall@10", "ndcg@10", "ild", "mgu", "drawn reward", "reward"]
    print("\n" + seeds_table(runs, metrics=metrics, against="SFT"))
    for name, baseline in evaluate_baselines(dataset, ks=[10], rewards=rewards).items():
        print(
            f"{name}: "
            + ", ".join(f"{metric} {baseline.metrics[metric]:.4f}" for metric in ("recall@10", "ndcg@10", "reward"))
        )
    best = {name: float(np.mean(values)) for name, values in before["best_of_drawn"].items()}
    print(
        f"SFT, the best of {DRAWN} drawn lists: {best}; {before['seconds_to_draw']:.0f} s for {dataset.test.num_rows} users"
    )
    for x in ("step", "kl"):
        logs = {name: several[0]["log"] for name, several in told.items() if name not in ("SFT", "offline")}
        panels = {
            title: {name: logged_curve(log, key, x=x) for name, log in logs.items()} for key, title in PANELS.items()
        }
        (arguments.output / f"signal-by-{x}.svg").write_text(line_charts(panels, x_label=x))


if __name__ == "__main__":
    main()
