"""Checks requests before the app gets them: the access token, and the type, size and arrival time of the body.

Also counts the responses. The whole body is read before the request is passed on, because its size and its arrival
time can only be checked while it is read. The app can then read the body again.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

from trl_rec.serving.config import ServingConfig
from trl_rec.serving.metrics import Metrics


Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Any, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health", "/docs", "/openapi.json")  # paths that need no access token
ENDPOINTS = (*OPEN, "/metrics", "/v1/recommend", "/v1/explain", "/v1/items", "/v1/model")
NO_BODY = ("GET", "HEAD", "OPTIONS")


class Refused(Exception):
    """Raised if a request is refused without being read further.

    Args:
        status (`int`): The status of the response.
        sentence (`str`): What is wrong.
        headers (*optional*): Further headers of the response.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers or {}


class Guard:
    """Wraps the app, and checks and counts its requests.

    Args:
        app: The app.
        config ([`ServingConfig`]): The settings.
        token (`bytes`, *optional*): The token that clients must send.
        metrics ([`Metrics`]): Where requests are counted.
    """

    def __init__(self, app: App, *, config: ServingConfig, token: bytes | None, metrics: Metrics) -> None:
        self._app = app
        self._config = config
        self._token = token
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        start = time.perf_counter()
        status = 500

        async def counted(message: Message) -> None:
            """Records the status of the response, and passes the message on."""
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            self._check_token(scope)
            if scope["method"] not in NO_BODY:
                receive = _replayed(await self._body(scope, receive), receive)
            await self._app(scope, receive, counted)
        except Refused as refused:
            await _refuse(refused, counted)
        except ConnectionError:
            status = 499  # the client has disconnected, so no response is sent
        finally:
            endpoint = scope["path"] if scope["path"] in ENDPOINTS else "other"
            self._metrics.add_request(endpoint, status, time.perf_counter() - start)

    def _check_token(self, scope: Any) -> None:
        """Raises [`Refused`] if the request needs the token, and the token is missing or wrong."""
        if self._token is None or scope["path"] in OPEN:
            return
        scheme, _, given = _header(scope, b"authorization").partition(b" ")
        # The time that `compare_digest` takes does not depend on how many characters of the token are right, so a
        # client cannot guess the token from this time.
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
            raise Refused(
                401,
                "the token is missing or wrong; send it as Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, scope: Any, receive: Receive) -> bytes:
        """Returns the body. Raises [`Refused`] if its content type is not JSON, or if it is too large or too slow."""
        kind = _header(scope, b"content-type").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refused(415, "the body must be JSON; send it with Content-Type: application/json")
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared[:20]) > self._config.max_body:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._read(receive), self._config.body_seconds)
        except TimeoutError:
            seconds = self._config.body_seconds
            raise Refused(408, f"the body did not arrive within {seconds:g} s; send it faster") from None

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            body += message.get("body", b"")
            if len(body) > self._config.max_body:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than {self._config.max_body} bytes; send a shorter history")


def _header(scope: Any, name: bytes) -> bytes:
    """Returns the value of a header; empty if there is none."""
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns a replacement for `receive`, from which the app can read the body again."""
    is_given = False

    async def replay() -> Message:
        """Returns the body at the first call, and the client's further messages afterwards."""
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(refused: Refused, send: Send) -> None:
    """Sends the response to a refused request."""
    content = json.dumps({"detail": refused.sentence}).encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        "Connection": "close",  # the rest of the body is not read
        **refused.headers,
    }
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})
