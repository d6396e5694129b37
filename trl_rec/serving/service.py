"""Connects the parts of a server: the queue of requests, the engine, the metrics and the log of recommended lists."""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from trl_rec.decoding import RecommendedList
from trl_rec.serving.batching import Batcher
from trl_rec.serving.config import ServingConfig
from trl_rec.serving.engine import Engine
from trl_rec.serving.list_log import ListLog
from trl_rec.serving.lists_engine import load_lists_engine
from trl_rec.serving.metrics import Metrics
from trl_rec.serving.model_engine import load_model_engine
from trl_rec.serving.schema import (
    ExplainRequest,
    ExplainResponse,
    MovedBy,
    RecommendRequest,
    RecommendResponse,
    ScoredItem,
)


logger = logging.getLogger(__name__)

Request: TypeAlias = RecommendRequest | ExplainRequest
Answer: TypeAlias = RecommendResponse | ExplainResponse


class Service:
    """Handles requests in batches, with an engine that may be replaced while the server runs.

    Args:
        engine ([`Engine`]): The engine that computes the results.
        config ([`ServingConfig`]): The settings.
    """

    def __init__(self, engine: Engine, config: ServingConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self._log = None if config.log_lists is None else ListLog(config.log_lists)
        self.batcher: Batcher[Request, Answer] = Batcher(
            self._handle,
            batch_size=config.batch_size,
            seconds=config.batch_ms / 1000,
            max_queue=config.max_queue,
            seen=self.metrics.add_batch,
        )
        self.engine = engine
        self.use(engine)

    def use(self, engine: Engine) -> None:
        """Uses another engine from the next batch on. The current batch is finished with the old engine."""
        catalog = engine.items.catalog
        self.metrics.set_run(engine.run, catalog.fingerprint, len(catalog))
        self.engine = engine

    def _handle(self, requests: list[Request]) -> Sequence[Answer | Exception]:
        """Handles a batch of requests. Runs in the worker thread of the batcher."""
        engine = self.engine  # the same engine for the whole batch, even if `use` replaces it in the meantime
        answers: list[Answer | Exception] = [ValueError()] * len(requests)

        # 1. Handle all requests for lists together.
        places = [place for place, request in enumerate(requests) if isinstance(request, RecommendRequest)]
        asked = [request for request in requests if isinstance(request, RecommendRequest)]
        if asked:
            for place, answer in zip(places, self._recommend(engine, asked), strict=True):
                answers[place] = answer

        # 2. Handle the requests for explanations one by one.
        for place, request in enumerate(requests):
            if isinstance(request, ExplainRequest):
                answers[place] = _explain(engine, request)
        return answers

    def _recommend(self, engine: Engine, requests: list[RecommendRequest]) -> list[RecommendResponse | Exception]:
        """Returns the response to each request for a list. Also counts the lists and logs them."""
        answers: list[RecommendResponse | Exception] = []
        counts: Counter[str] = Counter()
        served: list[int] = []
        for request, found in zip(requests, engine.answer(requests), strict=True):
            if isinstance(found, Exception):
                answers.append(found)
                continue
            answer, items = _response(engine, found)
            answers.append(answer)
            served += items
            counts["lists_total"] += 1
            counts["history_items_total"] += len(request.titles or request.history or [])
            counts["unknown_items_total"] += found.unknown
            counts["fallback_lists_total"] += found.fallback
            counts["short_lists_total"] += found.short is not None
        self.metrics.add_lists(counts, served, engine.items.catalog.fingerprint)

        if self._log is not None:
            lists = [answer for answer in answers if isinstance(answer, RecommendResponse)]
            if not self._log.append(lists):
                self.metrics.count("log_failures_total")
        return answers


def load_engine(config: ServingConfig) -> Engine:
    """Returns an engine for the model or the file of lists given in the settings, after warming up the engine."""
    engine: Engine = load_model_engine(config) if config.lists is None else load_lists_engine(config)
    engine.warm_up()
    return engine


def _response(engine: Engine, found: RecommendedList) -> tuple[RecommendResponse, list[int]]:
    """Returns the response that contains a recommended list, and the catalogue indices of the list's items."""
    indices = [engine.items.catalog.positions[one.item_id] for one in found]
    items = [
        ScoredItem(item_id=one.item_id, title=one.title, score=one.score, groups=engine.items.groups_of(index))
        for one, index in zip(found, indices, strict=True)
    ]
    answer = RecommendResponse(
        items=items,
        unknown=found.unknown,
        fallback=found.fallback,
        short=found.short,
        request_id=uuid.uuid4().hex,
        run=engine.run,
    )
    return answer, indices


def _explain(engine: Engine, request: ExplainRequest) -> ExplainResponse | Exception:
    """Returns the response to a request for an explanation, or the exception with which it failed."""
    try:
        found = engine.explain(request)
    except ValueError as error:
        return error
    except Exception as error:
        logger.exception("an explanation failed")
        return error
    positions = engine.items.catalog.positions
    items = [
        MovedBy(
            item_id=one.item_id,
            title=one.title,
            difference=one.difference,
            groups=engine.items.groups_of(positions[one.item_id]),
        )
        for one in found
    ]
    return ExplainResponse(items=items, run=engine.run)
