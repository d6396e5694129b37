"""Tests `Batcher`: requests that arrive together are handled together, and none is lost."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from trl_rec.serving.batching import Batcher, QueueFull, Stopping


def make_batcher(handle, **settings) -> tuple[Batcher, list[int]]:
    sizes: list[int] = []
    settings = {"batch_size": 8, "seconds": 0.05, "max_queue": 100, **settings}
    batcher = Batcher(handle, seen=sizes.append, **settings)
    batcher.start()
    return batcher, sizes


def test_requests_that_wait_share_a_batch() -> None:
    batcher, sizes = make_batcher(lambda items: time.sleep(0.02) or [10 * item for item in items])

    async def ask() -> list[int]:
        return await asyncio.gather(*(batcher.submit(item) for item in range(20)))

    assert asyncio.run(ask()) == [10 * item for item in range(20)]
    batcher.stop()
    assert sum(sizes) == 20 and max(sizes) == 8 and len(sizes) <= 5


def test_one_client_never_waits_and_several_share_every_batch() -> None:
    """The batcher waits for more requests, for up to `seconds`, only if fewer are waiting than the last batch had."""
    batcher, sizes = make_batcher(lambda items: items, seconds=0.5)

    async def client(number: int) -> None:
        for item in range(number):
            await batcher.submit(item)

    async def clients() -> None:
        await asyncio.gather(*(client(10) for _ in range(4)))

    start = time.monotonic()
    asyncio.run(client(20))
    assert sizes == [1] * 20 and time.monotonic() - start < 0.4
    sizes.clear()
    asyncio.run(clients())
    batcher.stop()
    assert sum(sizes) == 40 and sizes.count(4) >= 8


def test_exceptions_reach_their_requests() -> None:
    def handle(items: list[int]) -> list:
        if 3 in items:
            raise RuntimeError("all of them")
        return [ValueError(str(item)) if item % 2 else item for item in items]

    batcher, _ = make_batcher(handle)

    async def ask(*items: int) -> list:
        return await asyncio.gather(*(batcher.submit(item) for item in items), return_exceptions=True)

    first, second = asyncio.run(ask(1, 2))
    assert isinstance(first, ValueError) and second == 2
    assert isinstance(asyncio.run(ask(3))[0], RuntimeError)
    assert asyncio.run(ask(4)) == [4]
    batcher.stop()


def test_a_full_queue_refuses_requests_and_a_stop_answers_the_accepted_ones() -> None:
    go = threading.Event()
    started = threading.Event()

    def handle(items: list[int]) -> list[int]:
        started.set()
        go.wait(30)
        return items

    batcher, _ = make_batcher(handle, max_queue=2, batch_size=1)

    async def ask() -> list:
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.to_thread(started.wait, 30)
        others = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as caught:
            await batcher.submit(3)
        assert caught.value.seconds >= 1
        stopping = asyncio.create_task(asyncio.to_thread(batcher.stop))
        await asyncio.sleep(0.05)
        with pytest.raises(Stopping):
            await batcher.submit(4)
        go.set()
        await stopping
        return await asyncio.gather(first, *others)

    assert asyncio.run(ask()) == [0, 1, 2]


def test_a_cancelled_request_does_not_block_the_next_one() -> None:
    batcher, _ = make_batcher(lambda items: time.sleep(0.05) or items)

    async def ask() -> int:
        gone = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.01)
        gone.cancel()
        return await batcher.submit(2)

    assert asyncio.run(ask()) == 2
    batcher.stop()
