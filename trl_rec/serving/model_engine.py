"""Answers requests for recommendations with the model of a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_rec.data import load
from trl_rec.decoding import Explanation, ItemFilter, RecommendedList, Recommender
from trl_rec.decoding.run_folder import SETTINGS, check_same_items, local_folder, missing_catalog
from trl_rec.serving.config import ServingConfig
from trl_rec.serving.engine import Items, KnownUsers, history_of, name_with_hash
from trl_rec.serving.schema import LONGEST_EXPLAINED, ExplainRequest, RecommendRequest


# The files of a run folder that determine the recommendations. The server watches them for changes. Checkpoints and
# logs are not among them.
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
FILES = (SETTINGS, *WEIGHTS, "config.json", "adapter_config.json", "tokenizer.json", "catalog/*.*")


class ModelEngine:
    """Answers requests with a [`Recommender`].

    Args:
        recommender ([`Recommender`]): The recommender.
        run (`str`): Name of the run.
        users ([`KnownUsers`], *optional*): The histories of users, for requests that give a user id.
        batch_size (`int`): Maximum number of prompts per forward pass.
    """

    def __init__(
        self, recommender: Recommender, run: str, users: KnownUsers | None = None, batch_size: int = 32
    ) -> None:
        self.items = Items(recommender.catalog)
        self.run = run
        self._recommender = recommender
        self._users = users
        self._batch_size = batch_size
        self._names_users = recommender.prompt_format.users is not None
        self._list_length = recommender.prompt_format.list_length

    def answer(self, requests: Sequence[RecommendRequest]) -> list[RecommendedList | Exception]:
        """Returns the recommendations for each request, or a `ValueError` whose message says why there are none."""
        # 1. Check the requests one by one, because a single invalid request would make the whole batch fail.
        answers: list[RecommendedList | Exception] = []
        prepared: dict[int, tuple[list[str], int, ItemFilter, int | None]] = {}
        for place, request in enumerate(requests):
            try:
                prepared[place] = self._prepared(request)
            except ValueError as error:
                answers.append(error)
            else:
                answers.append(RecommendedList())

        # 2. Rank the items for all valid requests together.
        places = [*prepared]
        try:
            found: Sequence[RecommendedList | Exception] = self._recommend(
                [requests[p] for p in places], prepared.values()
            )
        except ValueError:  # a request is wrong in a way that the checks do not find, so handle each on its own
            found = [self._alone(requests[place], prepared[place]) for place in places]
        for place, one in zip(places, found, strict=True):
            if isinstance(one, RecommendedList):
                one.unknown += prepared[place][1]
            answers[place] = one
        return answers

    def explain(self, request: ExplainRequest) -> list[Explanation]:
        """Returns the history items that changed the score of an item most."""
        history, _ = history_of(request, self.items, self._users)
        # A history that is read from the dataset may have any length. Keep only its newest items, as is also done
        # when a prompt would be too long.
        newest = history[-LONGEST_EXPLAINED:]
        return self._recommender.explain(
            newest, request.item_id, request.k, user=self._row_of(request.user), batch_size=self._batch_size
        )

    def warm_up(self) -> None:
        """Recommends once, so that no client waits for values that are computed at first use."""
        self.items.warm_up()
        user = 0 if self._names_users else None
        self._recommender.recommend(self.items.catalog.ids[:1], 1, user=user)

    def card(self) -> dict[str, Any]:
        """Describes the engine for `GET /v1/model`."""
        settings = self._recommender.settings
        return {
            "kind": "model",
            "run": self.run,
            **self.items.card(),
            "list_length": self._list_length,
            "num_beams": settings["num_beams"],
            "max_length": settings["max_length"],
            "has_prior": self._recommender.prior is not None,
            "num_parameters": self._recommender.model.num_parameters(),
            "needs_user": self._names_users,
            "knows_users": self._users is not None,
            "explains": True,
        }

    def _prepared(self, request: RecommendRequest) -> tuple[list[str], int, ItemFilter, int | None]:
        """Returns the request's history, number of unknown titles, filter, and row of the user (see [`_row_of`]).

        Raises `ValueError` if the request is invalid.
        """
        history, unknown = history_of(request, self.items, self._users)
        one = ItemFilter(where=request.where, max_per=request.max_per)
        self._recommender.check_filter(one)
        check_excluded(request, self.items)
        if self._list_length is not None and request.k > self._list_length:
            raise ValueError(
                f"k must be at most {self._list_length}, because this model writes lists of {self._list_length} items"
            )
        return history, unknown, one, self._row_of(request.user)

    def _row_of(self, user: str | None) -> int | None:
        """Returns the user's row in `RecDataset.users`, or None if the model's prompts do not contain the user."""
        if not self._names_users:
            return None
        if user is None or self._users is None:
            missing = "add 'user' to the request" if self._users is not None else "start the server with --dataset"
            raise ValueError(f"this model's prompts contain the user; {missing}")
        return self._users.row_of(user)

    def _recommend(self, requests: Sequence[RecommendRequest], prepared: Any) -> list[RecommendedList]:
        if not requests:
            return []
        histories, _, filters, users = zip(*prepared, strict=True)
        return self._recommender.recommend_batch(
            histories,
            [request.k for request in requests],
            users=users,
            exclude=[request.exclude for request in requests],
            filters=filters,
            batch_size=self._batch_size,
        )

    def _alone(self, request: RecommendRequest, prepared: Any) -> RecommendedList | Exception:
        try:
            return self._recommend([request], [prepared])[0]
        except ValueError as error:
            return error


def check_excluded(request: RecommendRequest, items: Items) -> None:
    """Raises `ValueError` if `exclude` contains an unknown id."""
    for item_id in request.exclude:
        if item_id not in items.catalog.positions:
            raise ValueError(
                f"exclude: {item_id!r:.80} is not in the catalogue of {len(items.catalog)} items; leave it out"
            )


def load_model_engine(config: ServingConfig) -> ModelEngine:
    """Loads the run folder, and the dataset if there is one."""
    assert config.model is not None
    folder = local_folder(config.model)
    options = {} if config.dtype is None else {"dtype": config.dtype}
    recommender = Recommender.from_pretrained(
        folder,
        catalog=missing_catalog(folder, config.dataset),
        prior=None if config.prior == "none" else "saved",
        device=config.device,
        **options,
    )
    users = None
    if config.dataset is not None:
        dataset = load(config.dataset)
        check_same_items(folder, dataset.with_surface(recommender.catalog.surface).catalog, config.dataset)
        users = KnownUsers(dataset, recommender.catalog)
    run = name_with_hash(Path(config.model) if Path(config.model).is_dir() else folder, run_files(folder))
    return ModelEngine(recommender, run, users, config.batch_size)


def run_files(folder: Path) -> list[Path]:
    """Returns the files of a run folder that determine the recommendations."""
    return [path for pattern in FILES for path in folder.glob(pattern) if not path.name.startswith(".")]
