"""`trl-rec recommend`: prints a history, and the items that a trained model recommends next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from trl_rec.data import load
from trl_rec.decoding import Recommender
from trl_rec.decoding.run_folder import check_same_items, local_folder
from trl_rec.printing import printable
from trl_rec.ranges import COUNT
from trl_rec.scripts.parsing import parse


SHOWN = 10  # maximum number of history items to print


@dataclass
class RecommendArguments:
    """Arguments for the model and for the user or history to recommend to."""

    model: str = field(metadata={"help": "run folder of a trainer, or hub id"})
    user: str | None = field(default=None, metadata={"help": "id of a user in --dataset"})
    dataset: str | None = field(default=None, metadata={"help": "dataset folder with the user's history"})
    titles: list[str] | None = field(
        default=None, metadata={"help": "titles of the items of a history, oldest first, instead of --user"}
    )
    k: Annotated[int, COUNT] = field(default=10, metadata={"help": "number of items to recommend"})
    exclude_history: bool = field(default=True, metadata={"help": "do not recommend items of the history"})
    prior: Literal["saved", "none"] = field(
        default="saved", metadata={"help": "saved: use the prior of the run folder, if it has one; none: use no prior"}
    )


def main(argv: list[str]) -> None:
    """Prints the history and the recommended items."""
    arguments = parse(RecommendArguments, argv, "recommend")
    has_user = arguments.user is not None
    if has_user == (arguments.titles is not None) or (has_user and arguments.dataset is None):
        raise ValueError("give either --user with --dataset, or --titles")

    prior = arguments.prior
    recommender = Recommender.from_pretrained(arguments.model, prior=None if prior == "none" else prior)
    history, user = _history(arguments, recommender)
    recommended = recommender.recommend(history, arguments.k, user=user, exclude_history=arguments.exclude_history)

    titles = dict(zip(recommender.catalog.ids, recommender.catalog.titles, strict=True))
    print(f"history, newest first ({len(history)} items, at most {SHOWN} shown)")
    print("\n".join(f"      {printable(titles[item_id])}" for item_id in reversed(history[-SHOWN:])))
    print(
        "recommended"
        if recommended
        else "there is nothing to recommend, because all items are in the history (see --exclude_history)"
    )
    print(
        "\n".join(
            f"  {rank:>2}. {printable(item.title)}  ({item.score:.2f})" for rank, item in enumerate(recommended, 1)
        )
    )


def _history(arguments: RecommendArguments, recommender: Recommender) -> tuple[list[str], int | None]:
    """Returns the ids of the history's items, oldest first, and the user's index in `RecDataset.users`.

    The index is None if `--user` is not given.
    """
    if arguments.user is not None and arguments.dataset is not None:
        dataset = load(arguments.dataset)
        folder = local_folder(arguments.model)  # a hub repository has been downloaded to the cache by now
        check_same_items(folder, dataset.with_surface(recommender.catalog.surface).catalog, arguments.dataset)
        return dataset.history_of(arguments.user), dataset.user_index(arguments.user)

    if recommender.prompt_format.users is not None:
        raise ValueError(f"the prompts of {arguments.model} name the user; give --user with --dataset, not --titles")
    return recommender.catalog.ids_of(arguments.titles or []), None
