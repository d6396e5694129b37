"""`trl-rec recommend`: prints what a trained model recommends to one user, or writes one list per user to a file.

Under `accelerate launch -m trl_rec.scripts.recommend`, the users whose lists are written to a file are
divided among the processes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from accelerate import PartialState

from trl_rec.data import RecDataset, load
from trl_rec.decoding import ItemFilter, Recommender
from trl_rec.decoding.run_folder import check_same_items, local_folder, missing_catalog
from trl_rec.printing import printable
from trl_rec.ranges import COUNT
from trl_rec.scripts.options.parsing import parse
from trl_rec.scripts.running import run
from trl_rec.serving import UserHistories, write_lists
from trl_rec.serving.user_histories import read_user_ids
from trl_rec.trainer.base.processes import join_processes


SHOWN = 10  # maximum number of history items to print


@dataclass
class RecommendArguments:
    """Arguments that select the model, and either a single history or the users to recommend to."""

    model: str = field(metadata={"help": "run folder of a trainer, or hub id"})
    user: str | None = field(default=None, metadata={"help": "id of a user in --dataset"})
    dataset: str | None = field(default=None, metadata={"help": "dataset folder with the users' histories"})
    titles: list[str] | None = field(
        default=None, metadata={"help": "titles of the items of a history, oldest first, instead of --user"}
    )
    all_users: bool = field(default=False, metadata={"help": "recommend to all users of --dataset; needs --output"})
    users: str | None = field(
        default=None,
        metadata={
            "help": "CSV, TSV or Parquet file with a column user_id: recommend to these users of --dataset; needs "
            "--output"
        },
    )
    histories: str | None = field(
        default=None,
        metadata={
            "help": "CSV, TSV or Parquet file with the columns user_id and item_id, and optionally timestamp: "
            "recommend to the users of this log instead of a dataset; needs --output"
        },
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "Parquet file for the lists of many users, with the columns user_id, rank, item_id and score"
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "replace --output if it exists"})
    k: Annotated[int, COUNT] = field(default=10, metadata={"help": "number of items to recommend"})
    exclude_history: bool = field(default=True, metadata={"help": "do not recommend items of the history"})
    where: str | None = field(
        default=None,
        metadata={
            "help": "which items may be recommended, as JSON: "
            '\'[["category", "==", "Shoes"], ["price", "<", 50]]\'; the columns are those of the catalogue'
        },
    )
    max_per: Annotated[dict[str, int] | None, COUNT] = field(
        default=None,
        metadata={
            "help": "maximum number of items in a list that have the same value in a column, as JSON: '{\"brand\": 2}'"
        },
    )
    prior: Literal["saved", "none"] = field(
        default="saved", metadata={"help": "saved: use the prior of the run folder, if it has one; none: use no prior"}
    )
    dtype: str | None = field(
        default=None, metadata={"help": "data type of the weights; by default, the type in which they were saved"}
    )
    batch_size: Annotated[int, COUNT] = field(default=64, metadata={"help": "prompts per forward pass"})


KINDS = (RecommendArguments,)


def main(argv: list[str]) -> None:
    """Prints the recommendations for one history, or writes the lists of many users to a file."""
    # 1. Check that the arguments name either one history or many users.
    arguments = parse(RecommendArguments, argv, "recommend")
    join_processes()
    of_many = [arguments.all_users, arguments.users is not None, arguments.histories is not None]
    of_one = [arguments.user is not None, arguments.titles is not None]
    if sum(of_many) + sum(of_one) != 1:
        raise ValueError("give one of --user, --titles, --all_users, --users and --histories")
    needs_dataset = arguments.user is not None or arguments.all_users or arguments.users is not None
    if needs_dataset and arguments.dataset is None:
        raise ValueError("the history of a user comes from a dataset; give --dataset as well")
    if (arguments.output is not None) != any(of_many):
        raise ValueError(
            "--output is needed with --all_users, --users and --histories, and has no effect without one of them"
        )

    # 2. Recommend.
    one_filter = ItemFilter(where=_where(arguments.where), max_per=arguments.max_per)
    recommender = Recommender.from_pretrained(
        arguments.model,
        catalog=missing_catalog(local_folder(arguments.model), arguments.dataset),
        prior=None if arguments.prior == "none" else arguments.prior,
        dtype=arguments.dtype,
    )
    if arguments.output is not None:
        _write(arguments, arguments.output, recommender, one_filter)
    else:
        _print(arguments, recommender, one_filter)


def _write(arguments: RecommendArguments, output: str, recommender: Recommender, one_filter: ItemFilter) -> None:
    """Writes the lists of many users to a file, and prints the number of users and rows."""
    if arguments.histories is not None:
        given = UserHistories.from_file(arguments.histories, recommender.catalog)
    else:
        user_ids = None if arguments.users is None else read_user_ids(arguments.users)
        given = UserHistories.of_dataset(_dataset(arguments, recommender), user_ids, recommender.catalog)

    written = write_lists(
        recommender,
        given,
        output,
        arguments.k,
        exclude_history=arguments.exclude_history,
        one_filter=one_filter,
        batch_size=arguments.batch_size,
        overwrite=arguments.overwrite,
    )
    if PartialState().is_main_process:
        print(f"{output} contains lists for {written.users:,} users, {written.rows:,} rows")
        if given.num_unknown:
            print(f"{given.num_unknown:,} interactions were dropped, because the model does not know their items")
        if written.fallback:
            print(f"{written.fallback:,} users without a known item in their history got a list ranked by the prior")
        if written.short:
            print(f"{written.short:,} users got fewer than {arguments.k} items, because no more can be recommended")


def _print(arguments: RecommendArguments, recommender: Recommender, one_filter: ItemFilter) -> None:
    """Prints a history and the recommended items."""
    history, user = _history(arguments, recommender)
    recommended = recommender.recommend(
        history,
        arguments.k,
        user=user,
        exclude_history=arguments.exclude_history,
        where=one_filter.where,
        max_per=one_filter.max_per,
    )

    titles = dict(zip(recommender.catalog.ids, recommender.catalog.titles, strict=True))
    print(f"history, newest first ({len(history)} items, at most {SHOWN} shown)")
    print("\n".join(f"      {printable(titles.get(item_id, item_id))}" for item_id in reversed(history[-SHOWN:])))
    if recommended:
        print("recommended, by the prior alone" if recommended.fallback else "recommended")
    elif arguments.where is None and arguments.max_per is None:
        print("there is nothing to recommend, because all items are in the history (see --exclude_history)")
    else:
        print("there is nothing to recommend, because no item outside the history passes the filters")
    print(
        "\n".join(
            f"  {rank:>2}. {printable(item.title)}  ({item.score:.2f})" for rank, item in enumerate(recommended, 1)
        )
    )


def _history(arguments: RecommendArguments, recommender: Recommender) -> tuple[list[str], int | None]:
    """Returns the ids of the history's items, oldest first, and the user's index in `RecDataset.users`.

    The index is None if `--user` is not given.
    """
    if arguments.user is not None:
        dataset = _dataset(arguments, recommender)
        return dataset.history_of(arguments.user), dataset.user_index(arguments.user)

    if recommender.prompt_format.users is not None:
        raise ValueError(
            f"{arguments.model} was trained on prompts that contain the user; give --user with --dataset, not --titles"
        )
    return recommender.catalog.ids_of(arguments.titles or []), None


def _dataset(arguments: RecommendArguments, recommender: Recommender) -> RecDataset:
    """Loads the dataset, and checks that its catalogue is the model's, with or without the model's retired items."""
    assert arguments.dataset is not None
    dataset = load(arguments.dataset)
    folder = local_folder(arguments.model)  # a hub repository has been downloaded to the cache by now
    check_same_items(folder, dataset.with_surface(recommender.catalog.surface).catalog, arguments.dataset)
    return dataset


def _where(text: str | None) -> Any:
    """Parses the conditions of `--where`."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(
            f'--where must be JSON, such as \'[["category", "==", "Shoes"]]\', not {text!r:.80}'
        ) from None


if __name__ == "__main__":
    run("recommend", main, sys.argv[1:])
