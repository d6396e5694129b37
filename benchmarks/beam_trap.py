"""Compares MSL (BEAR with weight 0) and both variants of BEAR on synthetic data with a trap for beam search.

    OMP_NUM_THREADS=1 python benchmarks/beam_trap.py runs/beam-trap --seeds 0 1 2

An interrupted command can be run again to continue. `beam_trap.json` in the output folder contains the measurements
of every trained model, and their means over the seeds.

Every item has three codes, which beam search generates one after another. 512 unlikely items share one popular first
code. They have 16 different second codes, and each of these belongs to 32 items. Every other first code belongs to one
item. Each user has one of eight tastes. Each taste has ten likely items, and one item that reveals the taste, because
it is the first item of every user with this taste. A user's further items are drawn independently, so the probability
of every next item is known.

The strength of the trap is adjustable. It is the probability of one of the 16 second codes, divided by the mean
probability of a likely item. The most likely item has 1.45 times this mean. Above a strength of 1.45, a beam search of
at most 16 beams therefore loses all likely items at the second code, even with the true probabilities, although each
of these items is much more likely than any item that the search finds.

With B beams, the table shows for each strength and each arm (MSL or a variant of BEAR):

- **recall@B**: the probability that the next item is among the B items that the beam search finds;
- **every item**: the probability that the next item is among the B items with the highest exact scores (the model's
  scores if every item is scored, without a beam search);
- **best**: the probability that the next item is among the B items that are most likely by construction;
- **PruningRate@B**: the share of the probability "every item" that comes from items which the beam search does not
  find.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback

from trl_rec import RecDataset, prepare
from trl_rec.data.dataset import at_most
from trl_rec.evaluation.tables import aligned
from trl_rec.files import write_json
from trl_rec.models import RecModelConfig
from trl_rec.trainer import BearConfig, build_bear_trainer


NUM_TASTES = 8
PER_TASTE = 10  # likely items per taste
NUM_SECOND = 16  # second codes below the popular first code
PER_SECOND = 32  # unlikely items per second code
NUM_UNLIKELY = NUM_SECOND * PER_SECOND
LENGTH = 12  # items per user, the first of which reveals the taste
NUM_USERS_MEASURED = 200
ARMS: dict[str, dict[str, Any]] = {
    "msl": {"bear_weight": 0.0},
    "bear, paper": {"variant": "paper"},
    "bear, survival": {"variant": "survival"},
}
SUMMARY = "beam_trap.json"


def main(words: list[str] | None = None) -> None:
    """Trains every arm at every strength with every seed, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_beams", type=int, default=10, help="number of beams B, in training and in decoding")
    parser.add_argument("--weight", type=float, default=2.75, help="bear_weight")
    parser.add_argument("--users", type=int, default=2000, help="users in training")
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args(words)

    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    path = arguments.output_dir / SUMMARY
    settings = {name: getattr(arguments, name) for name in ("num_beams", "weight", "users", "steps")}
    content = json.loads(path.read_text()) if path.is_file() else {"settings": settings, "runs": []}
    if content["settings"] != settings:
        raise SystemExit(
            f"{path} was made with the settings {content['settings']}, not with those given; choose another output "
            "folder"
        )

    # Train the models that the summary lacks, and write the summary after each training.
    done = {(run["strength"], run["seed"], run["arm"]) for run in content["runs"]}
    for strength in arguments.strengths:
        for seed in arguments.seeds:
            for arm in ARMS:
                if (strength, seed, arm) in done:
                    continue
                run = {"strength": strength, "seed": seed, "arm": arm}
                content["runs"].append({**run, **train(arguments, strength, seed, arm)})
                content["means"] = means(content["runs"])
                write_json(path, content)
                print(content["runs"][-1], flush=True)
    print("\n" + "\n".join(aligned(table(content["means"], arguments.num_beams))))


def truth(strength: float) -> np.ndarray:
    """Returns the probability of every item for every taste, `(NUM_TASTES, num_items)`.

    The items are the `NUM_UNLIKELY` unlikely ones, the likely ones of each taste, and one item per taste that only
    reveals the taste.
    """
    # A second code has `strength` times the mean probability of a likely item, and all probabilities add up to 1.
    odds = strength * NUM_SECOND / PER_TASTE
    share = odds / (1 + odds)
    likely = np.linspace(0.55, 1.45, PER_TASTE)[::-1] * (1 - share) / PER_TASTE
    probabilities = np.zeros((NUM_TASTES, NUM_UNLIKELY + NUM_TASTES * (PER_TASTE + 1)))
    probabilities[:, :NUM_UNLIKELY] = share / NUM_UNLIKELY
    for taste in range(NUM_TASTES):
        start = NUM_UNLIKELY + taste * PER_TASTE
        probabilities[taste, start : start + PER_TASTE] = likely
    return probabilities


def make_world(folder: Path, strength: float, num_users: int) -> RecDataset:
    """Writes the log and the codes in LC-Rec's format, and prepares them."""
    probabilities = truth(strength)
    num_items = probabilities.shape[1]
    draw = np.random.default_rng(0)
    users = {}
    for user in range(num_users):
        taste = user % NUM_TASTES
        first = num_items - NUM_TASTES + taste
        users[f"u{user}"] = [first, *draw.choice(num_items, LENGTH - 1, p=probabilities[taste]).tolist()]

    # Every item after the unlikely ones has a first code of its own.
    codes = [
        [0, item // PER_SECOND, item % PER_SECOND] if item < NUM_UNLIKELY else [1 + item - NUM_UNLIKELY, 0, 0]
        for item in range(num_items)
    ]
    source = folder / "source"
    source.mkdir(parents=True, exist_ok=True)
    index = {str(item): [f"<a_{a}>", f"<b_{b}>", f"<c_{c}>"] for item, (a, b, c) in enumerate(codes)}
    texts = {str(item): {"title": f"item {item}"} for item in range(num_items)}
    for name, part in (("inter", users), ("index", index), ("item", texts)):
        (source / f"trap.{name}.json").write_text(json.dumps(part))
    return prepare(source, folder / "data", repeats="keep").with_surface("semantic_id")


def train(arguments: argparse.Namespace, strength: float, seed: int, arm: str) -> dict[str, float]:
    """Trains one model, and returns its measurements."""
    # 1. Train from scratch. Users may choose an item again, so items of the history are ranked too.
    folder = arguments.output_dir / f"strength-{strength:g}"
    dataset = make_world(folder, strength, arguments.users)
    config = BearConfig(
        str(folder / "run"),
        **{"bear_weight": arguments.weight, **ARMS[arm]},
        num_beams=arguments.num_beams,
        targets="all",
        max_length=64,
        max_steps=arguments.steps,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=32,
        per_device_eval_batch_size=50,
        eval_exclude_history=False,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        overwrite=True,
        seed=seed,
    )
    model = RecModelConfig(hidden_size=64, num_layers=2, num_heads=2, dropout=0.0)
    trainer = build_bear_trainer(dataset, config, model)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    trainer.end()

    # 2. Rank the items for some users, by beam search and by exact scores.
    rows = at_most(NUM_USERS_MEASURED, dataset.test)
    with trainer.policy() as policy:
        beam = policy.rank(rows, arguments.num_beams, num_beams=arguments.num_beams).items
        exact = policy.rank_exhaustively(rows, arguments.num_beams).items
    ids = np.array([int(one) for one in dataset.catalog.ids])  # the order of the items may differ from `truth`
    tastes = ids[[row[0] for row in rows["history"]]] - (len(ids) - NUM_TASTES)
    found = figures(truth(strength)[tastes], ids[beam], ids[exact], arguments.num_beams)
    return {**found, "seconds": round(seconds, 1)}


def figures(probabilities: np.ndarray, beam: np.ndarray, exact: np.ndarray, num_beams: int) -> dict[str, float]:
    """Returns one model's values in the columns of the table, except the training time.

    Args:
        probabilities: The probability of every item as the next one, `(N, num_items)`.
        beam: The items of the beam search, `(N, B)`.
        exact: The items with the highest exact scores, `(N, B)`.
        num_beams: B.
    """
    found = np.take_along_axis(probabilities, beam, 1).sum(1)
    of_exact = np.take_along_axis(probabilities, exact, 1)  # (N, B)
    lost = ~(exact[:, :, None] == beam[:, None, :]).any(2)
    best = np.sort(probabilities, 1)[:, -num_beams:].sum(1)
    return {
        "recall": float(found.mean()),
        "every item": float(of_exact.sum(1).mean()),
        "best": float(best.mean()),
        "pruning_rate": float((of_exact * lost).sum() / of_exact.sum()),
    }


def means(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the means over the seeds, one entry per strength and arm, in the order of the strengths."""
    entries = []
    for strength in sorted({run["strength"] for run in runs}):
        for arm in ARMS:
            own = [run for run in runs if (run["strength"], run["arm"]) == (strength, arm)]
            if own:
                names = ("recall", "every item", "best", "pruning_rate", "seconds")
                entry = {name: float(np.mean([run[name] for run in own])) for name in names}
                by_seed = {name: [run[name] for run in own] for name in ("recall", "pruning_rate")}
                entries.append({"strength": strength, "arm": arm, "seeds": len(own), **entry, "by seed": by_seed})
    return entries


def table(entries: list[dict[str, Any]], num_beams: int) -> list[list[str]]:
    """Returns the rows of the table."""
    head = ["strength", "arm", "seeds", f"recall@{num_beams}", "every item", "best", f"PruningRate@{num_beams}"]
    rows = [[*head, "CPU s"]]
    for one in entries:
        values = [f"{one[name]:.4f}" for name in ("recall", "every item", "best", "pruning_rate")]
        rows.append([f"{one['strength']:g}", one["arm"], str(one["seeds"]), *values, f"{one['seconds']:.0f}"])
    return rows


if __name__ == "__main__":
    main()
