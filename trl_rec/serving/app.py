"""Builds the server's web application: its endpoints, its web page, and its error responses.

Every response with a status of 400 or above is a JSON object whose key `detail` contains one sentence.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from trl_rec.serving.batching import QueueFull, Stopping
from trl_rec.serving.config import ServingConfig, read_token
from trl_rec.serving.guard import Guard
from trl_rec.serving.reloading import State, watch, watched_state
from trl_rec.serving.schema import (
    ExplainRequest,
    ExplainResponse,
    Item,
    ItemsResponse,
    Problem,
    RecommendRequest,
    RecommendResponse,
    problem_sentence,
)
from trl_rec.serving.service import Service, load_engine
from trl_rec.serving.titles import LONGEST_QUERY
from trl_rec.version import __version__


logger = logging.getLogger(__name__)

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "the body is not JSON",
        401: "missing or wrong token",
        408: "the body did not arrive in time",
        413: "body too large",
        415: "the content type is not JSON",
        422: "invalid request",
        503: "too many requests are waiting, or the server is stopping",
    }.items()
}
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def build_app(config: ServingConfig) -> FastAPI:
    """Loads the model or the precomputed lists, and returns the application for an ASGI server.

    Run the application in a single worker process. Each further process would load the model again, and requests to
    different processes could not share batches.
    """
    token = read_token(config)
    state = watched_state(config) if config.reload else None
    if config.reload and state is None:
        raise ValueError("reload needs a folder or file on this machine; give one, or leave reload out")
    return make_app(Service(load_engine(config), config), token, state)


def make_app(service: Service, token: bytes | None = None, state: State | None = None) -> FastAPI:
    """Returns the application of a service.

    Args:
        service ([`Service`]): The service.
        token (`bytes`, *optional*): The token that clients must send.
        state (*optional*): The state of the files of the model or the lists, as returned by [`watched_state`] before
            they were loaded. Only used with `reload`, that is, if the server watches the files for changes.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Starts the worker thread and, with `reload`, the task that watches the files of the model or the lists.

        When the server stops, waits at most `stop_seconds` for the thread to finish the requests in the queue.
        """
        service.batcher.start()
        watching = asyncio.create_task(watch(service, state)) if service.config.reload else None
        try:
            yield
        finally:
            if watching is not None:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
            await asyncio.to_thread(service.batcher.stop, service.config.stop_seconds)

    app = FastAPI(
        title="trl-rec",
        version=__version__,
        description="Recommends the items that a user is likely to choose after a history.",
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, config=service.config, token=token, metrics=service.metrics)
    _add_handlers(app)
    _add_endpoints(app, service)
    _add_page(app)
    return app


def _add_endpoints(app: FastAPI, service: Service) -> None:
    """Adds the endpoints of the API."""

    @app.post("/v1/recommend", response_model=RecommendResponse, responses=PROBLEMS)
    async def recommend(request: RecommendRequest) -> Response:
        """Returns the items that a user is likely to choose after a history."""
        _check_k(request.k, service.config.max_k)
        return _json(await service.batcher.submit(request))

    @app.post("/v1/explain", response_model=ExplainResponse, responses=PROBLEMS)
    async def explain(request: ExplainRequest) -> Response:
        """Returns the history items that changed the score of an item most."""
        return _json(await service.batcher.submit(request))

    @app.get("/v1/items", response_model=ItemsResponse, responses=PROBLEMS)
    def items(
        query: Annotated[str, Query(max_length=LONGEST_QUERY)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        """Returns the items whose titles contain all words of the query, or whose id is the query."""
        found = service.engine.items
        return _json(
            ItemsResponse(
                items=[
                    Item(item_id=found.catalog.ids[one], title=found.catalog.titles[one], groups=found.groups_of(one))
                    for one in found.titles.search(query, limit)
                ]
            )
        )

    @app.get("/v1/model", responses=PROBLEMS)
    def model() -> dict[str, Any]:
        """Describes the model and the catalogue."""
        return {**service.engine.card(), "max_k": service.config.max_k}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Reports whether the server can handle requests."""
        if not service.batcher.is_alive:
            raise HTTPException(503, "the worker has ended; start the server again")
        return {"status": "ok", "run": service.engine.run}

    @app.get("/metrics")
    def metrics() -> Response:
        """Returns counts in Prometheus' text format."""
        text = service.metrics.text(len(service.batcher))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    """Adds the web page.

    Its headers let a browser run only the page's own script, and let this script send requests only to this server.
    """
    page = files("trl_rec.serving").joinpath("page.html").read_text(encoding="utf-8")
    script = SCRIPT.search(page)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    headers = {
        "Content-Security-Policy": f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        """Returns the page."""
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)


def _add_handlers(app: FastAPI) -> None:
    """Adds a handler for each kind of error. A handler returns a response with a status and one sentence."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        """Handles a body or a query that does not have the form that the endpoint requires."""
        errors = error.errors()
        return _problem(400 if errors[0]["type"] == "json_invalid" else 422, problem_sentence(errors))

    @app.exception_handler(ValueError)
    async def refused(request: Request, error: ValueError) -> Response:
        """Handles a request that the recommender refuses, for example because a filter names an unknown column."""
        return _problem(422, str(error))

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> Response:
        """Handles a request that arrives while too many requests are waiting."""
        sentence = f"too many requests are waiting; try again in {error.seconds} s"
        return _problem(503, sentence, {"Retry-After": str(error.seconds)})

    @app.exception_handler(Stopping)
    async def stopping(request: Request, error: Stopping) -> Response:
        """Handles a request that arrives while the server is stopping."""
        return _problem(503, "the server is stopping; try again", {"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> Response:
        """Handles an unknown path, an unknown method, a body that FastAPI cannot read, or a failed health check."""
        sentences = {
            400: "the body cannot be read as JSON",
            404: f"there is nothing at {request.url.path!r:.80}; GET /openapi.json lists the endpoints",
            405: f"{request.url.path!r:.80} has no method {request.method:.20}; GET /openapi.json lists the methods",
        }
        return _problem(error.status_code, sentences.get(error.status_code, str(error.detail)), error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        """Handles an unexpected error. The details are written to the log, and are not sent to the client."""
        return _problem(500, "the server has failed; its log has the reason")


def _check_k(k: int, largest: int) -> None:
    if k > largest:
        raise ValueError(f"k must be at most {largest}, not {k}")


def _json(answer: BaseModel) -> Response:
    """Returns a JSON response. If an endpoint returned the pydantic object, FastAPI would check its types again."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """Returns an error response.

    Non-ASCII characters are escaped, because the sentence may quote text from the request that UTF-8 cannot encode.
    """
    return Response(json.dumps({"detail": sentence}), status, headers, media_type="application/json")
