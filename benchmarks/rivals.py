"""Trains SASRec of the library RecTools, and compares its lists with the transition baseline and with other runs.

    python benchmarks/rivals.py data/ml-100k runs/rectools-sasrec [--against runs/bear-ml-100k] [--seed 0]
        [--every 5] [--patience 5] [--max_epochs 300] [--set n_factors=64 ...] [--trl_rec PATH]

The dataset folder must have a leave-one-out split. SASRec has RecTools' default settings, which `--set` changes. It
learns from the training items until its validation NDCG@10, measured every few epochs, no longer rises. The weights
with the best value then make the lists for the test split. As in trl-rec, the history of a test user includes the
validation item. The program writes the lists to `OUTPUT/lists.parquet`. It measures them and the baselines with
`trl-rec evaluate --lists`, and calls `trl-rec compare` for each run folder of `--against`.

On Python 3.11 and 3.12, RecTools requires NumPy 1, and therefore needs an environment of its own. This is why the
program calls the command `trl-rec` instead of importing trl_rec.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


INSTALL = (
    "RecTools is not installed; on Python 3.13, run pip install 'trl-rec[rivals]'; on an older Python, make another "
    "environment, run pip install 'rectools[torch]' 'pyarrow<22' in it, run this program with the Python of that "
    "environment, and give the path of the command 'trl-rec' with --trl_rec"
)
NAME = "rectools-sasrec"
NUM_RANKS = 50  # for recall@50


def main() -> None:
    """Trains SASRec, writes its lists, and measures them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="folder made by trl-rec prepare, with a leave-one-out split")
    parser.add_argument("output", help="folder for the lists and their evaluation")
    parser.add_argument("--against", nargs="*", default=[], help="run folders to compare with, on the same dataset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=5, help="epochs between two measurements on validation")
    parser.add_argument(
        "--patience", type=int, default=5, help="training ends after this many measurements without improvement"
    )
    parser.add_argument("--max_epochs", type=int, default=300)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="arguments of RecTools' SASRecModel")
    parser.add_argument(
        "--trl_rec", help="path of the command 'trl-rec'; by default, the one beside this Python or on the PATH"
    )
    arguments = parser.parse_args()

    # 1. Train, and choose the number of epochs on validation.
    trl_rec = find_trl_rec(arguments.trl_rec)
    log = read_log(Path(arguments.dataset))
    model = fit(
        log,
        seed=arguments.seed,
        settings=dict(read_setting(text) for text in arguments.set),
        every=arguments.every,
        patience=arguments.patience,
        max_epochs=arguments.max_epochs,
    )

    # 2. Write the lists for the test split.
    lists = recommend(model, log[log["held_out"] != "test"], log.loc[log["held_out"] == "test", "user_id"], NUM_RANKS)
    path = Path(arguments.output, "lists.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    lists.to_parquet(path, index=False)

    # 3. Measure the lists, and compare them with runs.
    evaluate = ["--dataset", arguments.dataset, "--output_dir", arguments.output, "--lists", str(path), "--name", NAME]
    subprocess.run([trl_rec, "evaluate", *evaluate], check=True)
    for run in arguments.against:
        subprocess.run([trl_rec, "compare", arguments.output, "--against", run], check=True)


def find_trl_rec(given: str | None) -> str:
    """Returns the path of the command `trl-rec`."""
    found = given or shutil.which("trl-rec", path=str(Path(sys.executable).parent)) or shutil.which("trl-rec")
    if found is None:
        raise SystemExit(
            "there is no command 'trl-rec' beside this Python or on the PATH; give its path with --trl_rec"
        )
    return found


def read_setting(text: str) -> tuple[str, Any]:
    """Returns the key and the value of `KEY=VALUE`. A value that is not valid JSON is returned as a string."""
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def read_log(folder: Path) -> pd.DataFrame:
    """Returns the interactions of a dataset folder, in the order of each user's history.

    Columns: `user_id`, `item_id`, `datetime` (the position in the user's history, because many timestamps are equal),
    `weight`, and `held_out` (`"test"` for the last item, `"validation"` for the one before, otherwise `"train"`).
    """
    split = json.loads((folder / "card.json").read_text(encoding="utf-8"))["split"]
    if split != "leave_one_out":
        raise SystemExit(f"{folder} has the split '{split}'; prepare the data with the split 'leave_one_out'")
    interactions = pd.read_parquet(folder / "interactions.parquet")
    user_ids = pd.read_parquet(folder / "users.parquet", columns=["user_id"])["user_id"].to_numpy()
    item_ids = pd.read_parquet(folder / "catalog" / "items.parquet", columns=["item_id"])["item_id"].to_numpy()

    # Users with fewer than three items are only for training.
    by_user = interactions.groupby("user")["item"]
    from_end = by_user.cumcount(ascending=False).to_numpy()
    is_held_out = by_user.transform("size").to_numpy() >= 3
    return pd.DataFrame(
        {
            "user_id": user_ids[interactions["user"].to_numpy()],
            "item_id": item_ids[interactions["item"].to_numpy()],
            "datetime": pd.to_datetime(by_user.cumcount().to_numpy(), unit="s"),
            "weight": 1.0,
            "held_out": np.select(
                [is_held_out & (from_end == 0), is_held_out & (from_end == 1)], ["test", "validation"], "train"
            ),
        }
    )


def fit(log: pd.DataFrame, *, seed: int, settings: dict[str, Any], every: int, patience: int, max_epochs: int) -> Any:
    """Returns a SASRec model with the weights that have the best validation NDCG@10."""
    if max_epochs < every:
        raise SystemExit(
            f"with --max_epochs {max_epochs} and --every {every}, training ends before the first measurement; set "
            "--every to at most --max_epochs"
        )
    try:
        from pytorch_lightning import seed_everything
        from rectools.models import SASRecModel
    except ImportError:
        raise SystemExit(INSTALL) from None
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    seed_everything(seed)

    # The model is trained for a few epochs at a time. The optimizer keeps its state in between.
    train = log[log["held_out"] == "train"]
    validation = log[log["held_out"] == "validation"]
    dataset = make_dataset(train)
    model = SASRecModel(deterministic=True, **settings)
    best, best_epochs, best_weights = -1.0, 0, None
    start = time.perf_counter()
    for epochs in range(every, max_epochs + 1, every):
        model.fit_partial(dataset, min_epochs=every, max_epochs=every)
        ndcg = ndcg_at_10(recommend(model, train, validation["user_id"], 10), validation)
        print(f"{epochs} epochs, {time.perf_counter() - start:.0f} s: validation NDCG@10 {ndcg:.4f}", flush=True)
        if ndcg > best:
            best, best_epochs = ndcg, epochs
            best_weights = copy.deepcopy(model.torch_model.state_dict())
        elif epochs - best_epochs >= patience * every:
            break
    print(f"best after {best_epochs} epochs: validation NDCG@10 {best:.4f}", flush=True)
    model.torch_model.load_state_dict(best_weights)
    return model


def make_dataset(histories: pd.DataFrame) -> Any:
    """Returns interactions as a dataset of RecTools."""
    from rectools.dataset import Dataset

    return Dataset.construct(histories[["user_id", "item_id", "weight", "datetime"]])


def recommend(model: Any, histories: pd.DataFrame, users: pd.Series, num_ranks: int) -> pd.DataFrame:
    """Returns lists as a table with the columns `user_id`, `rank`, `item_id` and `score`.

    The lists exclude the items of the user's history. If the model knows no item of a user, the list contains the most
    popular items.
    """
    known = histories["item_id"].isin(model.data_preparator.get_known_item_ids())
    is_known = users.isin(histories.loc[known, "user_id"])
    lists = model.recommend(
        users=users[is_known].to_numpy(), dataset=make_dataset(histories), k=num_ranks, filter_viewed=True
    )[["user_id", "rank", "item_id", "score"]]
    others = users[~is_known]
    if others.empty:
        return lists
    print(f"users without an item that the model knows: {len(others)}; their lists are the most popular items")
    return pd.concat([lists, popular(histories, others, num_ranks)])


def popular(histories: pd.DataFrame, users: pd.Series, num_ranks: int) -> pd.DataFrame:
    """Returns lists of the most popular items that are not in the user's history."""
    counts = histories["item_id"].value_counts()
    chosen = histories[histories["user_id"].isin(users)].groupby("user_id")["item_id"].agg(set)
    lists = []
    for user in users:
        top = counts[~counts.index.isin(chosen[user])].head(num_ranks)
        ranks = np.arange(1, len(top) + 1)
        lists.append(pd.DataFrame({"user_id": user, "rank": ranks, "item_id": top.index, "score": top.to_numpy()}))
    return pd.concat(lists)


def ndcg_at_10(lists: pd.DataFrame, targets: pd.DataFrame) -> float:
    """Returns the mean over users of NDCG@10, with one target per user."""
    hits = targets[["user_id", "item_id"]].merge(lists[lists["rank"] <= 10], on=["user_id", "item_id"])
    return float((1 / np.log2(hits["rank"] + 1)).sum() / len(targets))


if __name__ == "__main__":
    main()
