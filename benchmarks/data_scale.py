"""Measures the time and peak memory of each step that reads a whole log of interactions. The first step prepares the
log, and the last one writes recommendation lists for up to a million users.

    python benchmarks/data_scale.py [2000000 10000000] [--steps prepare load transition] [--cores 2]

The positional arguments are numbers of interactions. A log has one user per 20 and one item per 100 interactions. The
user and the item of each interaction are drawn from power laws. The log is written as a folder of Parquet files. Each
step runs in a process of its own, so that its peak memory excludes that of other steps. The peak is the largest
resident set, which includes pages of memory-mapped files. Other programs on the machine change the elapsed seconds,
but hardly the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trl_rec.data import load, prepare
from trl_rec.data.dataset import at_most
from trl_rec.decoding.priors.counted import TransitionPrior
from trl_rec.decoding.priors.fitted import fit_prior
from trl_rec.decoding.priors.mixture import MixturePrior
from trl_rec.decoding.recommender import Recommender
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.evaluation.kept.writing import write_evaluation
from trl_rec.evaluation.results import evaluate_baselines
from trl_rec.items import ItemCatalog
from trl_rec.models import make_model, make_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.serving import UserHistories, write_lists


PER_USER = 20
PER_ITEM = 100
PART = 5_000_000  # interactions per Parquet file


def make_log(folder: Path, options: argparse.Namespace) -> str:
    """Writes the items and the interactions of the log. The interactions are divided among several Parquet files."""
    num_interactions = options.interactions[0]
    num_users = max(num_interactions // PER_USER, 10)
    num_items = max(num_interactions // PER_ITEM, 10)
    interactions = folder / "source" / "interactions"
    interactions.mkdir(parents=True)
    titles = [f"Item number {index}" for index in range(num_items)]
    items = pa.table({"item_id": pa.array(np.arange(num_items)).cast(pa.string()), "title": titles})
    pq.write_table(items, folder / "source" / "items.parquet")

    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, num_interactions, PART)):
        size = min(PART, num_interactions - start)
        user, item = (
            np.minimum(count * rng.random(size) ** power, count - 1).astype(np.int64)
            for count, power in ((num_users, 1.5), (num_items, 3))
        )
        columns = {
            "user_id": pa.array(user).cast(pa.string()),
            "item_id": pa.array(item).cast(pa.string()),
            "timestamp": rng.integers(1_500_000_000, 1_600_000_000, size),
            "rating": rng.integers(1, 6, size),
        }
        pq.write_table(pa.table(columns), interactions / f"part-{number:05d}.parquet")
    return f"{num_users} users, {num_items} items"


def run_prepare(folder: Path, options: argparse.Namespace) -> str:
    """Prepares the log."""
    dataset = prepare(
        folder / "source",
        folder / "dataset",
        split=options.split,
        min_user_interactions=options.min_interactions,
        min_item_interactions=options.min_interactions,
    )
    counts = {name: dataset.card[name] for name in ("num_users", "num_items", "num_interactions", "rows")}
    return json.dumps(counts)


def run_load(folder: Path, options: argparse.Namespace) -> str:
    """Loads the dataset. Loading also checks it."""
    return f"{len(load(folder / 'dataset').test)} test rows"


def run_transition(folder: Path, options: argparse.Namespace) -> str:
    """Fits the transition prior, and saves it."""
    dataset = load(folder / "dataset")
    prior = fit_prior("transition", dataset)
    assert isinstance(prior, TransitionPrior)
    prior.save(folder / "transition.safetensors")
    return f"{len(prior.counts.shares)} pairs"


def run_mixture(folder: Path, options: argparse.Namespace) -> str:
    """Fits the mixture prior, and saves it."""
    dataset = load(folder / "dataset")
    prior = fit_prior("mixture", dataset)
    assert isinstance(prior, MixturePrior)
    prior.save(folder / "mixture.safetensors")
    return f"{sum(len(counts.shares) for counts in prior.counts.values())} pairs"


def run_evaluate(folder: Path, options: argparse.Namespace) -> str:
    """Evaluates a baseline for at most a million users. Writes the metrics, their values per user and the rankings."""
    dataset = load(folder / "dataset")
    dataset = replace(dataset, test=at_most(1_000_000, dataset.test))
    results = evaluate_baselines(dataset, baselines=(options.baseline,), recall_at=50)
    write_evaluation(folder / "evaluation", results, dataset=dataset, ks=(1, 5, 10), exclude_history=True)
    return f"{len(dataset.test)} users, NDCG@10 {results[options.baseline].metrics['ndcg@10']:.4f}"


def run_lists(folder: Path, options: argparse.Namespace) -> str:
    """Ranks items for at most a million users with a tiny model of random weights, and writes one list per user.

    The model knows only 2,000 items, because ranking all items would take hours. The item numbers in the histories are
    taken modulo 2,000. How the memory grows with the number of items is measured by the other steps.
    """
    torch.set_num_threads(options.cores)
    dataset = load(folder / "dataset")
    catalog = ItemCatalog(dataset.catalog.items.slice(0, 2000), "item_token")
    tokenizer = make_tokenizer(catalog)
    model = make_model(tokenizer, hidden_size=16, num_layers=1, num_heads=1)
    settings = {"num_beams": 10, "renormalize": True, "length_penalty": 0.0, "max_length": 64, "prompt": {}}
    model.save_pretrained(folder / "run")
    tokenizer.save_pretrained(folder / "run")
    save_recommender(folder / "run", catalog, settings)
    recommender = Recommender.from_pretrained(folder / "run")
    every = UserHistories.of_dataset(dataset)
    users = np.arange(min(1_000_000, len(every)))
    histories = every.histories.take(users)
    folded = Ragged(histories.values % len(catalog), histories.offsets)
    given = UserHistories(every.user_ids.take(users), folded)
    written = write_lists(recommender, given, folder / "lists.parquet", batch_size=64)
    return f"{len(given)} users; {written}"


STEPS: dict[str, Callable[[Path, argparse.Namespace], str]] = {
    "log": make_log,
    "prepare": run_prepare,
    "load": run_load,
    "transition": run_transition,
    "mixture": run_mixture,
    "evaluate": run_evaluate,
    "lists": run_lists,
}


def measure(step: str, folder: Path, num_interactions: int, options: list[str]) -> None:
    """Runs a step in a process of its own, and prints its time and its peak memory."""
    command = [sys.executable, __file__, str(num_interactions), *options, "--only", step, "--folder", str(folder)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    note = process.stdout.read().strip()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"the step {step} ended with the exit status {os.waitstatus_to_exitcode(status)}")
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss / 2**20
    print(
        f"{num_interactions} interactions, {step}: {seconds:.1f} s, {cpu:.1f} s of CPU, peak {peak:.2f} GiB; {note}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interactions", type=int, nargs="*", default=[10_000_000])
    parser.add_argument("--steps", nargs="+", choices=[*STEPS][1:], default=[*STEPS][1:])
    parser.add_argument("--split", choices=["leave_one_out", "time"], default="leave_one_out")
    parser.add_argument("--min_interactions", type=int, default=5, help="k of the k-core filter, for users and items")
    parser.add_argument("--baseline", choices=["popularity", "transition"], default="popularity")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to keep all files; by default they are deleted")
    parser.add_argument("--only", choices=[*STEPS], help=argparse.SUPPRESS)
    options = parser.parse_args()

    # If `measure` has started this process, run only one step, on the given number of cores.
    if options.only is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
        pa.set_cpu_count(options.cores)
        print(STEPS[options.only](options.folder, options))
        return

    # Measure each step. If an earlier run has kept the log (`--folder`), do not write the log again.
    passed_on = ["--split", options.split, "--min_interactions", str(options.min_interactions)]
    passed_on += ["--cores", str(options.cores), "--baseline", options.baseline]
    for num_interactions in options.interactions:
        folder = Path(tempfile.mkdtemp()) if options.folder is None else options.folder / str(num_interactions)
        try:
            steps = options.steps if (folder / "source").is_dir() else ["log", *options.steps]
            for step in steps:
                measure(step, folder, num_interactions, passed_on)
        finally:
            if options.folder is None:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
