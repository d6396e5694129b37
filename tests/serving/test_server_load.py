"""Tests a server under load. Even with eight clients, hostile bodies and broken connections at the same time, a valid
request never gets an error.

`make test` runs this for five seconds. `make test-long` runs it for sixty, and checks that memory does not grow.
"""

from __future__ import annotations

import gc
import json
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.decoding.recommenders import UnevenPrior, random_histories
from tests.serving.servers import Running, make_engine, make_service, running


pytestmark = pytest.mark.filterwarnings("ignore:.* have the same text as an earlier item")

KEYS = ["history", "titles", "user", "k", "exclude", "where", "max_per", "other"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["id 1", "gone", "brand", "price", "genres", "==", "in", "not in", "<", "ash", 10**400, "\ud800"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
IDS = st.lists(st.sampled_from(["id 1", "id 2", "gone", ""]), max_size=5)
CONDITION = st.tuples(
    st.sampled_from(["brand", "price", "stock", "genres", "title", "gone"]),
    st.sampled_from(["==", "!=", "<", ">=", "in", "not in", "~"]),
    SCALARS | st.lists(SCALARS, max_size=3),
)
# Bodies that are nearly valid: the history is a list of ids, but the values of the other keys may be arbitrary.
NEARLY = st.fixed_dictionaries(
    {"history": IDS},
    optional={
        "k": st.integers(-1, 30) | VALUES,
        "exclude": IDS | VALUES,
        "where": st.lists(CONDITION, max_size=3) | VALUES,
        "max_per": st.dictionaries(st.sampled_from(["brand", "genres", "gone"]), st.integers(0, 3)) | VALUES,
        "user": SCALARS,
    },
)
BODIES = st.one_of(
    NEARLY.map(json.dumps).map(str.encode),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4).map(json.dumps).map(str.encode),
    st.binary(max_size=60),
)


def attack(server: Running, number: int) -> None:
    """Sends bodies of all kinds. Each is answered, or refused in one sentence."""

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(BODIES, st.sampled_from(["/v1/recommend", "/v1/explain"]))
    def send(body: bytes, path: str) -> None:
        answer = server.client().post(path, body)
        if answer.status != 200:
            assert answer.status in (400, 422), (answer, body)
            assert list(answer.body) == ["detail"] and "\n" not in answer.body["detail"]
            assert 5 < len(answer.body["detail"]) < 400
        else:
            assert "items" in answer.body

    send()


def disturb(server: Running, is_over: threading.Event) -> None:
    """Repeatedly connects, sends a part of a request, and then disconnects or stays connected."""
    rng = random.Random(0)
    whole = b"POST /v1/recommend HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
    whole += b'{"history":["id 1"]}'
    kept: list[socket.socket] = []
    while not is_over.wait(0.02):
        one = socket.create_connection(("127.0.0.1", server.port))
        with suppress(OSError):
            one.sendall(whole[: rng.randrange(len(whole) + 1)])
        if rng.random() < 0.3 and len(kept) < 30:
            kept.append(one)
        else:
            one.close()
    for one in kept:
        one.close()


def load(seconds: float, examples: int) -> list[int]:
    """Runs all clients at once for some seconds, and returns the memory in kB after each fifth of this time."""
    # Two engines, with and without a prior. The server switches between them while it runs.
    engines = [make_engine(run="one"), make_engine(prior=UnevenPrior(), run="two")]
    service = make_service(engines[0], max_queue=1000)
    is_over = threading.Event()
    statuses: Counter[int] = Counter()
    problems: list[object] = []
    memory: list[int] = []

    def ask(number: int) -> None:
        rng = random.Random(number)
        client = server.client()
        while not is_over.is_set():
            (history,) = random_histories(rng, 1)
            answer = client.recommend(history, rng.choice([1, 5, 10]), where=rng.choice([None, [["price", "<", 60]]]))
            statuses[answer.status] += 1
            if answer.status != 200 or answer.body["run"] not in ("one", "two"):
                problems.append(answer)

    with running(service) as server, ThreadPoolExecutor(10) as pool:
        work = [pool.submit(ask, number) for number in range(8)]
        work.append(pool.submit(disturb, server, is_over))
        attacking = pool.submit(attack, server, examples)
        end = time.monotonic() + seconds
        try:
            for part in range(5):
                time.sleep(max(end - time.monotonic(), 0) / (5 - part))
                service.use(engines[(part + 1) % 2])
                gc.collect()
                memory.append(resident())
            attacking.result()
        finally:
            is_over.set()
        for one in work:
            one.result()
    assert not problems, problems[:3]
    assert statuses[200] > 8
    return memory


def resident() -> int:
    """Returns the resident memory of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_five_seconds_of_load() -> None:
    load(5, 60)


@pytest.mark.long
def test_a_minute_of_load_does_not_increase_memory() -> None:
    memory = load(60, 400)
    assert memory[-1] - memory[1] < 30_000, memory
