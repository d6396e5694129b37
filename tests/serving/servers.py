"""Runs servers in a thread of the test, and provides a client for them."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn

from tests.decoding.recommenders import make_recommender
from trl_rec.decoding import RecommendedList
from trl_rec.decoding.priors import Prior
from trl_rec.serving import ServingConfig
from trl_rec.serving.app import make_app
from trl_rec.serving.model_engine import ModelEngine
from trl_rec.serving.reloading import State
from trl_rec.serving.service import Service


JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    status: int
    body: Any
    headers: dict[str, str]


class Client:
    """Sends requests over one connection."""

    def __init__(self, port: int, token: str | None = None) -> None:
        self.port = port
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        self._connection.request(method, path, body, {**self._headers, **(headers or {})})
        response = self._connection.getresponse()
        data = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return Answer(response.status, json.loads(data) if is_json else data.decode(), found)

    def get(self, path: str) -> Answer:
        return self.send("GET", path)

    def post(self, path: str, content: Any) -> Answer:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.send("POST", path, data, JSON)

    def recommend(self, history: Sequence[str] = (), k: int = 5, **options: Any) -> Answer:
        return self.post("/v1/recommend", {"history": list(history), "k": k, **options})


class Running(NamedTuple):
    service: Service
    server: uvicorn.Server
    port: int
    thread: threading.Thread

    def client(self, token: str | None = None) -> Client:
        return Client(self.port, token)

    def stop(self) -> None:
        self.server.should_exit = True


def make_service(engine: Any = None, **settings: Any) -> Service:
    """Returns a service, which handles the requests of a server. It gets its lists from the given engine, by default
    from the small model of `make_engine`."""
    engine = make_engine() if engine is None else engine
    return Service(engine, ServingConfig(model="unused", **{"batch_ms": 2, **settings}))


def make_engine(kind: str = "item_token", prior: Prior | None = None, run: str = "one") -> ModelEngine:
    return ModelEngine(make_recommender(kind, prior), run)


@contextmanager
def running(service: Service, token: bytes | None = None, state: State | None = None) -> Iterator[Running]:
    """Runs a server on a free port until the end of the block."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = make_app(service, token, state)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="critical", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Running(service, server, listener.getsockname()[1], thread)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


class HeldEngine:
    """An engine that answers only after `is_released` is set. Its model is that of `make_engine`."""

    def __init__(self) -> None:
        self._inner = make_engine()
        self.items = self._inner.items
        self.run = "held"
        self.is_released = threading.Event()
        self.started = threading.Event()

    def answer(self, requests: Sequence[Any]) -> list[RecommendedList | Exception]:
        self.started.set()
        assert self.is_released.wait(30)
        return self._inner.answer(requests)

    def card(self) -> dict[str, Any]:
        return self._inner.card()
