"""Compares the speed of `write_lists`, which writes one list per user to a file, with that of `rank_split`.

`rank_split` builds the trie, and ranks items for the users of the test split in one pass, with all prompts in memory.
`write_lists` uses the trie that the recommender has already built. It ranks items for the same users in parts, stores
each part on disk, and writes the lists to a Parquet file. Both use the same model, exclude the items of the history,
and use the prior of the run folder and the same batch size. They take turns. On a CPU, CPU time is measured, so that
other programs on the machine matter little. On other devices, elapsed time is measured.

    python benchmarks/user_lists.py DATASET_FOLDER RUN_FOLDER [--users 1000] [--k 10] [--batch_size 64] [--runs 3]
        [--device cpu] [--threads 1]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq
import torch

from trl_rec.data import load
from trl_rec.data.dataset import at_most, split_rows, split_users
from trl_rec.decoding import Recommender
from trl_rec.evaluation import rank_split
from trl_rec.serving import UserHistories, write_lists


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("run")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default=None)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    # Read the histories of the test split. Both functions rank items for them.
    recommender = Recommender.from_pretrained(arguments.run, device=arguments.device)
    dataset = load(arguments.dataset).with_surface(recommender.catalog.surface)
    dataset = replace(dataset, test=at_most(arguments.users, dataset.test))
    users = split_users(dataset.test)
    histories = split_rows(dataset.test, "history")
    given = UserHistories(dataset.users["user_id"].combine_chunks().take(users), histories, users=users)
    settings = recommender.settings
    options = {name: settings[name] for name in ("renormalize", "length_penalty", "max_length", "num_beams")}

    # Time both functions in turns. The first pair builds caches, and does not count.
    clock = time.process_time if recommender.model.device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {"rank_split": [], "write_lists": []}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(arguments.runs + 1):
            start = clock()
            ranked = rank_split(
                recommender.model,
                recommender.tokenizer,
                dataset,
                prompt_format=recommender.prompt_format,
                top_k=arguments.k,
                batch_size=arguments.batch_size,
                prior=recommender.prior,
                **options,
            )
            seconds["rank_split"].append(clock() - start)

            output = Path(folder) / f"{run}.parquet"
            start = clock()
            write_lists(recommender, given, output, arguments.k, batch_size=arguments.batch_size)
            seconds["write_lists"].append(clock() - start)
        table = pq.read_table(output)

    # Compare the lists, and print the rates.
    item_ids = np.array(dataset.catalog.ids)[ranked.items[ranked.items >= 0]]
    same = np.mean(table["item_id"].to_numpy(zero_copy_only=False) == item_ids)
    split, written = (median(values[1:]) for values in seconds.values())
    print(f"{len(users):,} users, {len(dataset.catalog):,} items, k {arguments.k}, batches of {arguments.batch_size}:")
    print(f"rank_split {len(users) / split:,.0f} users/s, write_lists {len(users) / written:,.0f} users/s")
    print(f"ratio {split / written:.2f} (medians of {arguments.runs} pairs)")
    print(f"the same item at {same:.2%} of all ranks")


if __name__ == "__main__":
    main()
