"""Collects requests into batches for one worker thread.

The worker takes the requests that are waiting. If there are fewer of them than in the last batch, the worker first
waits a few milliseconds for more. The requests of a single client are therefore handled without this wait, because
the last batch contained one request. Several clients share a batch if each of them sends its next request as soon as
it receives a response.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, NamedTuple, TypeVar


logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class QueueFull(Exception):
    """Raised if too many requests are waiting.

    Args:
        seconds (`int`): Number of seconds after which the queue is expected to be empty, from 1 to 60.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__("too many requests are waiting")
        self.seconds = seconds


class Stopping(Exception):
    """Raised if a request arrives after the batcher was stopped."""


class _Waiting(NamedTuple, Generic[T, R]):
    item: T
    future: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """Calls a function with batches of waiting requests, in one thread.

    Args:
        handle: The function. It takes requests, and returns one result or exception for each.
        batch_size (`int`): Maximum number of requests per call.
        seconds (`float`): Longest time to wait until there are as many requests as in the last batch.
        max_queue (`int`): Maximum number of waiting requests.
        seen (*optional*): Called with the size of every batch, in the worker thread.
    """

    def __init__(
        self,
        handle: Callable[[list[T]], Sequence[R | Exception]],
        *,
        batch_size: int,
        seconds: float,
        max_queue: int,
        seen: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._handle = handle
        self._batch_size = batch_size
        self._seconds = seconds
        self._max_queue = max_queue
        self._seen = seen
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._expected = 1
        self._is_stopping = False
        self._seconds_per_item = 0.0  # a moving average
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether the worker is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Starts the worker."""
        self._thread = threading.Thread(target=self._work, name="recommender", daemon=True)
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Refuses new requests. Returns when all waiting requests have results, or after `timeout` seconds."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    async def submit(self, item: T) -> R:
        """Returns the result of a request, or raises the exception that `handle` returned for this request.

        Raises [`QueueFull`] if too many requests are waiting, and [`Stopping`] if the batcher was stopped.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._is_stopping:
                raise Stopping
            number = len(self._waiting)
            if number >= self._max_queue:
                raise QueueFull(min(max(math.ceil(number * self._seconds_per_item), 1), 60))
            self._waiting.append(_Waiting(item, future))
            # Wake the worker at the first request, and when there are as many requests as in the last batch.
            if number == 0 or number + 1 >= self._expected:
                self._changed.notify()
        return await future

    def _work(self) -> None:
        """Runs in the worker thread until the batcher is stopped and nothing is waiting."""
        while batch := self._next():
            start = time.monotonic()
            try:
                results = self._handle([one.item for one in batch])
            except Exception as error:
                # The error is wrapped, because the app would handle a `ValueError` as an invalid request.
                logger.exception("a batch of %d requests failed", len(batch))
                results = [RuntimeError(f"the batch failed: {error!r}")] * len(batch)
            spent = (time.monotonic() - start) / len(batch)
            self._seconds_per_item = 0.9 * self._seconds_per_item + 0.1 * spent if self._seconds_per_item else spent
            self._seen(len(batch))
            with suppress(RuntimeError):  # the event loop was closed before the batch was finished
                batch[0].future.get_loop().call_soon_threadsafe(_settle, batch, results)

    def _next(self) -> list[_Waiting[T, R]]:
        """Returns the next batch, or an empty list if the batcher is stopped and nothing is waiting."""
        with self._changed:
            # 1. Wait for a first request.
            while not self._waiting and not self._is_stopping:
                self._changed.wait()

            # 2. Wait briefly until there are as many requests as in the last batch.
            end = time.monotonic() + self._seconds
            while len(self._waiting) < self._expected and not self._is_stopping:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)

            # 3. Take the requests.
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch_size))]
            self._expected = max(len(batch), 1)
            return batch


def _settle(batch: list[_Waiting[T, R]], results: Sequence[R | Exception]) -> None:
    """Sets the results of the futures of a batch. Runs in the thread of the event loop."""
    for one, result in zip(batch, results, strict=True):
        if one.future.done():  # cancelled, because the client has disconnected
            continue
        if isinstance(result, Exception):
            one.future.set_exception(result)
        else:
            one.future.set_result(result)
