"""`trl-rec recommend`: a user or some titles in, a readable list out, the history beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl_rec.data import load
from trl_rec.decoding import Recommender
from trl_rec.decoding.run_folder import check_same_items, local_folder
from trl_rec.scripts.parsing import parse


@dataclass
class RecommendArguments:
    """Whose list, and from which run."""

    model: str = field(metadata={"help": "run folder of a trainer, or hub id"})
    user: str | None = field(default=None, metadata={"help": "a user's id, with --dataset"})
    dataset: str | None = field(default=None, metadata={"help": "dataset folder that knows the user"})
    titles: list[str] | None = field(
        default=None, metadata={"help": "titles of a history, oldest first, instead of a user"}
    )
    k: int = field(default=10, metadata={"help": "length of the list"})
    exclude_history: bool = field(default=True, metadata={"help": "never recommend what the history holds"})


def main(argv: list[str]) -> None:
    """Prints the history and the list."""
    arguments = parse(RecommendArguments, argv, "recommend")
    if (arguments.user is None) == (arguments.titles is None) or (
        arguments.user is not None and arguments.dataset is None
    ):
        raise ValueError("give --user with --dataset, or --titles")
    recommender, user = Recommender.from_pretrained(arguments.model), None
    if arguments.user is not None:
        dataset = load(arguments.dataset)
        folder = local_folder(arguments.model)  # of a hub repository: it is fetched by now
        check_same_items(folder, dataset.with_surface(recommender.catalog.surface).catalog, arguments.dataset)
        history, user = dataset.history_of(arguments.user), dataset.user_index(arguments.user)
    elif recommender.prompt_format.users is not None:
        raise ValueError(
            f"prompts of {arguments.model} name the user, and titles name none; give --user with --dataset"
        )
    else:
        history = recommender.catalog.ids_of(arguments.titles)
    listed = recommender.recommend(history, arguments.k, user=user, exclude_history=arguments.exclude_history)
    titles = dict(zip(recommender.catalog.ids, recommender.catalog.titles, strict=True))
    print(f"history, newest first ({len(history)} items, at most 10 shown)")
    print("\n".join(f"      {titles[item]}" for item in reversed(history[-10:])))
    print(
        "recommended" if listed else "nothing is left to recommend: the history holds it all (see --exclude_history)"
    )
    print("\n".join(f"  {rank:>2}. {one.title}  ({one.score:.2f})" for rank, one in enumerate(listed, 1)))
