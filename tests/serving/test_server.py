"""Tests that the server answers as `Recommender` does, refuses malformed requests in one sentence each, and loses no
request."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import numpy as np
import pytest

from tests.decoding.recommenders import NUM_ITEMS, UnevenPrior, make_recommender, random_histories
from tests.serving.servers import Client, HeldEngine, Running, make_engine, make_service, running, wait_for
from trl_rec import ItemCatalog
from trl_rec.serving import ServingConfig, list_log, reloading
from trl_rec.serving.config import TOKEN, read_token
from trl_rec.serving.engine import Items
from trl_rec.serving.list_log import ListLog
from trl_rec.serving.model_engine import ModelEngine
from trl_rec.serving.reloading import watched_state
from trl_rec.serving.schema import LONGEST_EXPLAINED, RecommendResponse


pytestmark = pytest.mark.filterwarnings("ignore:.* have the same text as an earlier item")

FILTERS = [
    {},
    {"where": [["brand", "==", "ash"]]},
    {"where": [[["price", "<", 50]], [["genres", "==", "noir"]]], "exclude": ["id 1", "id 3"]},
    {"max_per": {"brand": 1}},
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(make_service()) as one:
        yield one


@pytest.mark.parametrize("kind", ["item_token", "title"])
@pytest.mark.parametrize("prior", [None, UnevenPrior()])
def test_the_lists_are_those_of_the_recommender(kind: str, prior: UnevenPrior | None) -> None:
    """Eight clients send requests at the same time, so that requests share batches."""
    recommender = make_recommender(kind, prior)
    rng = random.Random(kind)
    asked = [
        (history, rng.choice([1, 4, 10]), FILTERS[row % 4])
        for row, history in enumerate([[], *random_histories(rng, 23)])
    ]
    with running(make_service(make_engine(kind, prior))) as server, ThreadPoolExecutor(8) as pool:

        def ask(one: tuple) -> dict:
            answer = server.client().recommend(one[0], one[1], **one[2])
            assert answer.status == 200
            return answer.body

        answers = list(pool.map(ask, asked))
        text = server.client().get("/metrics").body

    for (history, k, filters), answer in zip(asked, answers, strict=True):
        expected = recommender.recommend(history, k, **filters)
        assert [item["score"] for item in answer["items"]] == pytest.approx(
            [one.score for one in expected], rel=1e-5, abs=1e-5
        )
        for item, one in zip(answer["items"], expected, strict=True):
            assert item["item_id"] == one.item_id or abs(item["score"] - one.score) < 1e-5
        assert (answer["unknown"], answer["fallback"]) == (expected.unknown, expected.fallback)
        assert answer["short"] == expected.short
    assert len({answer["request_id"] for answer in answers}) == len(answers)
    batches = float(text.split("trl_rec_batch_size_count ")[1].split()[0])
    assert batches < len(asked)


def test_titles_are_looked_up(server: Running) -> None:
    catalog = server.service.engine.items.catalog
    ids = server.client().recommend([catalog.ids[3], catalog.ids[0]]).body
    titles = server.client().post(
        "/v1/recommend", {"titles": [catalog.titles[3], "No such title", catalog.titles[0]], "k": 5}
    )
    assert titles.status == 200 and titles.body["unknown"] == 1
    assert titles.body["items"] == ids["items"]


def test_explanations_are_those_of_the_recommender(server: Running) -> None:
    history = ["id 3", "id 5", "gone"]
    answer = server.client().post("/v1/explain", {"history": history, "item_id": "id 7"})
    expected = make_recommender("item_token").explain(history, "id 7")
    assert [one["item_id"] for one in answer.body["items"]] == [one.item_id for one in expected]
    assert answer.body["items"][0]["difference"] == pytest.approx(expected[0].difference, abs=1e-5)


class OneUser:
    """Takes the place of `KnownUsers`, the users of a dataset. Here every user has the same history."""

    def __init__(self, items: list[int]) -> None:
        self._items = np.array(items)

    def items_of(self, user: str) -> np.ndarray:
        return self._items


def test_an_explanation_uses_the_newest_items_of_a_user() -> None:
    """An explanation needs one prompt per item of the history. If it used all items of a user with a long history, it
    would block the server's only worker thread for a long time."""
    recommender = make_recommender("item_token")
    items = [0] * 60 + [row % 20 + 1 for row in range(LONGEST_EXPLAINED)]
    with running(make_service(ModelEngine(recommender, "one", OneUser(items)))) as server:
        body = {"user": "u1", "item_id": "id 22", "k": LONGEST_EXPLAINED}
        answer = server.client().post("/v1/explain", body).body["items"]
    expected = recommender.explain([f"id {item}" for item in items[-LONGEST_EXPLAINED:]], "id 22")
    sizes = [abs(one.difference) for one in expected]
    assert [abs(one["difference"]) for one in answer] == pytest.approx(sizes, abs=1e-5)
    assert "id 0" not in {one["item_id"] for one in answer}


def test_items_are_found_by_words_of_their_titles(server: Running) -> None:
    catalog = server.service.engine.items.catalog
    found = server.client().get("/v1/items?query=LAMP%20%20blue&limit=5").body["items"]
    assert found and all("Blue" in one["title"] and "Lamp" in one["title"] for one in found)
    assert server.client().get("/v1/items?query=id%207").body["items"][0]["title"] == catalog.titles[7]
    assert [one["item_id"] for one in server.client().get("/v1/items?limit=2").body["items"]] == ["id 0", "id 1"]
    assert server.client().get("/v1/items?query=nothing.*").body["items"] == []


def test_the_card_and_the_schema_describe_the_server(server: Running) -> None:
    card = server.client().get("/v1/model").body
    assert card["num_items"] == NUM_ITEMS and card["kind"] == "model" and card["explains"]
    schema = server.client().get("/openapi.json").body
    assert {"/v1/recommend", "/v1/explain", "/v1/items", "/v1/model", "/health", "/metrics"} <= set(schema["paths"])
    assert server.client().get("/docs").status == 200
    assert server.client().get("/health").body == {"status": "ok", "run": "one"}


SMALL = {"history": ["id 1"]}
# For each kind of mistake: the body, the expected status, and a part of the error message.
MALFORMED = {
    "no JSON": (b"{", 400, "not valid JSON"),
    "nothing": (b"", 422, "the body"),
    "not UTF-8": (b'{"history": ["\xff"]}', 400, "JSON"),
    "deep": (b"[" * 5000, 400, "JSON"),
    "a list": ([], 422, "must be a JSON object"),
    "no history": ({}, 422, "give history, titles or user"),
    "two histories": ({"history": [], "titles": []}, 422, "not both"),
    "text as history": ({"history": "id 1"}, 422, "history must be a list"),
    "numbers as ids": ({"history": ["id 1", 1]}, 422, "history[1] must be text, not 1"),
    "half a surrogate": (b'{"history": ["\\ud800"]}', 422, "valid Unicode"),
    "a long history": ({"history": ["x"] * 1001}, 422, "at most 1000 entries"),
    "a long id": ({"history": ["x" * 2001]}, 422, "at most 2000 characters"),
    "k 0": ({**SMALL, "k": 0}, 422, "k must be at least 1, not 0"),
    "k 1001": ({**SMALL, "k": 1001}, 422, "k must be at most 1000, not 1001"),
    "k as text": ({**SMALL, "k": "5"}, 422, "k must be a whole number"),
    "k as boolean": ({**SMALL, "k": True}, 422, "k must be a whole number"),
    "k infinite": (b'{"history": [], "k": 1e999}', 422, "k must be a whole number"),
    "an unknown key": ({**SMALL, "top": 1}, 422, "there is no key top"),
    "an unknown id to exclude": ({**SMALL, "exclude": ["gone"]}, 422, "exclude: 'gone' is not in the catalogue"),
    "an unknown column": ({**SMALL, "where": [["color", "==", 1]]}, 422, "where: the catalogue has no column 'color'"),
    "an unknown operator": ({**SMALL, "where": [["brand", "~", "a"]]}, 422, "is not an operator"),
    "another type": ({**SMALL, "where": [["price", "<", "cheap"]]}, 422, "cannot be compared"),
    "a mapping as condition": ({**SMALL, "where": [{"brand": "ash"}]}, 422, "'where' may contain"),
    "a deep filter": ({**SMALL, "where": [[[[[["brand"]]]]]]}, 422, "nested too deeply"),
    "many conditions": ({**SMALL, "where": [["price", "<", 1]] * 51}, 422, "at most 50 conditions or alternatives"),
    "many values": ({**SMALL, "where": [["price", "in", [1] * 1001]]}, 422, "at most 1000 values"),
    "an unknown column to limit": ({**SMALL, "max_per": {"color": 1}}, 422, "max_per names the column 'color'"),
    "a limit of 0": ({**SMALL, "max_per": {"brand": 0}}, 422, "max_per of brand must be at least 1"),
    "a user without a dataset": ({"user": "u1"}, 422, "--dataset"),
}


@pytest.mark.parametrize("problem", MALFORMED)
def test_a_malformed_body_is_refused_in_one_sentence(server: Running, problem: str) -> None:
    body, status, part = MALFORMED[problem]
    answer = server.client().post("/v1/recommend", body)
    assert (answer.status, list(answer.body)) == (status, ["detail"])
    assert part in answer.body["detail"] and "\n" not in answer.body["detail"]


def test_other_malformed_requests_are_refused(server: Running) -> None:
    client = server.client
    assert client().get("/nothing").status == 404
    assert client().get("/v1/recommend").status == 405
    assert client().send("POST", "/v1/recommend", b"{}", {"Content-Type": "text/plain"}).status == 415
    assert client().get("/v1/items?limit=0").body == {"detail": "limit must be at least 1, not '0'"}
    assert client().get("/v1/items?limit=x").status == 422
    assert client().get(f"/v1/items?query={'x' * 201}").status == 422
    answer = client().post("/v1/explain", {"history": ["id 1"], "item_id": "gone"})
    assert answer.status == 422 and "'gone' is not in the catalogue" in answer.body["detail"]
    assert client().post("/v1/explain", {"history": ["id 1"]}).body == {"detail": "item_id is missing"}


def test_a_request_for_more_than_the_model_writes_is_refused() -> None:
    with running(make_service(make_engine("list"), max_k=50)) as server:
        assert server.client().recommend(["id 1"], 6).status == 200
        answer = server.client().recommend(["id 1"], 7)
        assert answer.status == 422 and "lists of 6 items" in answer.body["detail"]
        assert server.client().recommend(["id 1"], 51).body == {"detail": "k must be at most 50, not 51"}


def test_one_invalid_request_does_not_spoil_its_batch() -> None:
    engine = make_engine()
    bodies = [{"where": [["nothing", "==", 1]]}, {}, {"exclude": ["gone"]}]
    with running(make_service(engine, batch_ms=200)) as server, ThreadPoolExecutor(3) as pool:
        server.service.batcher._expected = 3
        answers = list(pool.map(lambda body: server.client().recommend(["id 1"], **body).status, bodies))
    assert answers == [422, 200, 422]


def test_bodies_that_are_too_large_or_too_slow_are_refused() -> None:
    with running(make_service(max_body=1000, body_seconds=0.3)) as server:
        answer = server.client().recommend(["x" * 500] * 3)
        assert answer.status == 413 and "1000 bytes" in answer.body["detail"]

        # Send a body without a declared length.
        chunked = b"POST /v1/recommend HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        chunked += b"Transfer-Encoding: chunked\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(chunked + (b"200\r\n" + b"x" * 512 + b"\r\n") * 3)
            assert connection.recv(4096).startswith(b"HTTP/1.1 413")

        # Send the headers, but no body.
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(chunked)
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        assert server.client().recommend().status == 200


def test_half_open_and_killed_clients_do_not_affect_other_clients(server: Running) -> None:
    unfinished = b"POST /v1/recommend HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    beginnings = [b"", b"POST /v1/rec", unfinished, b"\x16\x03\x01\x00"]
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    for number, one in enumerate(sockets):
        one.sendall(beginnings[number % 4])
    assert all(server.client().recommend(["id 1"]).status == 200 for _ in range(5))
    for one in sockets:
        one.close()
    assert server.client().recommend(["id 1"]).status == 200


def test_a_full_queue_is_answered_with_503() -> None:
    engine = HeldEngine()
    with running(make_service(engine, max_queue=2)) as server, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(server.client().recommend, ["id 1"])]
        assert engine.started.wait(30)
        accepted += [pool.submit(server.client().recommend, ["id 1"]) for _ in range(2)]
        wait_for(lambda: len(server.service.batcher) == 2)

        answer = server.client().recommend(["id 1"])
        assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
        assert "try again" in answer.body["detail"]
        assert server.client().get("/health").status == 200
        engine.is_released.set()
        assert [one.result().status for one in accepted] == [200] * 3


def test_a_stop_answers_the_accepted_requests() -> None:
    engine = HeldEngine()
    with running(make_service(engine)) as server, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(server.client().recommend, ["id 1"]) for _ in range(3)]
        wait_for(lambda: engine.started.is_set())
        wait_for(lambda: len(server.service.batcher) + 1 >= 3 or len(server.server.server_state.tasks) == 3)
        server.stop()
        wait_for(lambda: not server.server.servers or not server.server.servers[0].is_serving())
        with pytest.raises(OSError):
            server.client().get("/health")
        engine.is_released.set()
        assert [one.result().status for one in accepted] == [200] * 3
    assert not server.service.batcher.is_alive


def test_an_unexpected_failure_is_a_500_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    engine = HeldEngine()
    engine.is_released.set()
    with running(make_service(engine)) as server:
        engine._inner = None
        answer = server.client().recommend(["id 1"])
        assert answer.status == 500 and answer.body == {"detail": "the server has failed; its log has the reason"}
        engine._inner = make_engine()
        assert server.client().recommend(["id 1"]).status == 200
    assert "a batch of 1 requests failed" in caplog.text


def test_the_token_is_required_except_for_the_page_the_schema_and_health() -> None:
    with running(make_service(), token=b"s3cret") as server:
        for path in ("/v1/model", "/v1/items", "/metrics", "/nothing"):
            answer = server.client().get(path)
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert server.client("s3cret").get(path).status in (200, 404)
        for wrong in ("", "s3cre", "s3cret2", "S3CRET", "s3cret s3cret"):
            assert server.client(wrong).recommend(["id 1"]).status == 401
        assert server.client().send("GET", "/v1/model", headers={"Authorization": "Basic s3cret"}).status == 401
        assert server.client("s3cret").recommend(["id 1"]).status == 200
        assert [server.client().get(path).status for path in ("/", "/health", "/openapi.json")] == [200] * 3


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    assert read_token(ServingConfig("run")) is None
    monkeypatch.setenv(TOKEN, "abc")
    assert read_token(ServingConfig("run")) == b"abc"
    (tmp_path / "token").write_text("def\n")
    assert read_token(ServingConfig("run", token_file=str(tmp_path / "token"))) == b"def"
    for bad in ("", " \n", "a b", "\u00e9"):
        (tmp_path / "token").write_text(bad)
        with pytest.raises(ValueError, match="empty or unusable"):
            read_token(ServingConfig("run", token_file=str(tmp_path / "token")))
    with pytest.raises(ValueError, match="cannot be read from"):
        read_token(ServingConfig("run", token_file=str(tmp_path / "gone")))


def test_lists_are_logged(tmp_path: Path) -> None:
    with running(make_service(log_lists=str(tmp_path / "log"))) as server:
        answers = [server.client().recommend(["id 1"], k).body for k in (1, 3)]
        assert server.client().recommend(["id 1"], 0).status == 422
        (file,) = (tmp_path / "log").iterdir()
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line, answer in zip(lines, answers, strict=True):
            assert line["request_id"] == answer["request_id"] and line["run"] == "one"
            assert line["items"] == [item["item_id"] for item in answer["items"]]
            assert line["scores"] == pytest.approx([item["score"] for item in answer["items"]])
            assert set(line) == {"request_id", "time", "run", "items", "scores", "fallback"}

        # A line that was cut off by a full disk does not spoil the next line.
        file.write_text(file.read_text() + '{"cut": ')
        server.service._log._may_be_cut = True
        server.client().recommend(["id 1"])
        assert json.loads(file.read_text().splitlines()[-1])["run"] == "one"

        # A log that cannot be written does not stop the server.
        file.unlink()
        (tmp_path / "log").rmdir()
        assert server.client().recommend(["id 1"]).status == 200
        assert "trl_rec_log_failures_total 1" in server.client().get("/metrics").body


def test_a_list_that_is_cut_off_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class FullDisk(FileIO):
        def write(self, data: bytes) -> int:
            return super().write(data[:10])

    answer = RecommendResponse(items=[], unknown=0, fallback=False, request_id="a", run="one")
    log = ListLog(tmp_path / "log")
    with monkeypatch.context() as patch:
        patch.setattr(list_log, "open", lambda path, mode, buffering: FullDisk(path, mode), raising=False)
        assert not log.append([answer])
    assert re.search("only 10 of [0-9]+ bytes of lists were appended to .*lists-", caplog.text)

    assert log.append([answer])  # the next list gets a line of its own
    (file,) = (tmp_path / "log").iterdir()
    assert json.loads(file.read_text().splitlines()[1])["request_id"] == "a"


def test_a_log_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose another folder"):
        ListLog(tmp_path / "file")


def test_metrics_count_requests_items_and_lists() -> None:
    with running(make_service(make_engine(run='a "b"\\'))) as server:
        client = server.client()
        client.recommend(["id 1", "gone"], 3)
        client.recommend(["gone"], 30)
        client.recommend(["id 1"], 0)
        text = client.get("/metrics").body
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['trl_rec_requests_total{endpoint="/v1/recommend",status="200"}'] == "2"
    assert lines['trl_rec_requests_total{endpoint="/v1/recommend",status="422"}'] == "1"
    assert lines['trl_rec_request_seconds_bucket{endpoint="/v1/recommend",le="+Inf"}'] == "3"
    assert (lines["trl_rec_history_items_total"], lines["trl_rec_unknown_items_total"]) == ("3", "2")
    assert lines["trl_rec_lists_total"] == "2" and lines["trl_rec_short_lists_total"] == "1"
    assert lines["trl_rec_distinct_items_served"] == lines["trl_rec_catalog_items"] == str(NUM_ITEMS)
    assert lines['trl_rec_run_info{run="a \\"b\\"\\\\"}'] == "1"
    for name in {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}:
        assert any(key.startswith(name) for key in lines), name


def test_the_unknown_share_is_that_of_the_histories_in_requests() -> None:
    """The server counts the items of histories, and how many of them are unknown (not in the catalogue). If a request
    has only a user id, the history comes from the dataset, so all its items are known. Both counts leave out such
    requests, which would lower the share of unknown items."""
    with running(make_service(ModelEngine(make_recommender("item_token"), "one", OneUser([1, 2, 3])))) as server:
        client = server.client()
        assert client.post("/v1/recommend", {"user": "u1"}).body["unknown"] == 0
        assert client.post("/v1/recommend", {"user": "u1", "titles": ["No such title", "Nor this"]}).status == 200
        text = client.get("/metrics").body
    assert "\ntrl_rec_history_items_total 2\n" in text and "\ntrl_rec_unknown_items_total 2\n" in text


def test_lists_of_the_old_run_do_not_count_as_items_of_the_new_catalogue() -> None:
    """A batch that started before a reload is answered after the reload, by the old engine. The distinct items that
    were served are counted for the new catalogue, so they leave out the items of this batch."""
    engine = HeldEngine()
    with running(make_service(engine)) as server, ThreadPoolExecutor(1) as pool:
        client = server.client()
        old = pool.submit(client.recommend, ["id 1"], 5)
        assert engine.started.wait(30)
        new = make_engine(run="two")
        new.items = Items(ItemCatalog(new.items.catalog.items.slice(0, NUM_ITEMS - 2), "item_token"))
        server.service.use(new)
        engine.is_released.set()
        assert old.result().body["run"] == "held"
        text = server.client().get("/metrics").body
    assert "\ntrl_rec_lists_total 1\n" in text and "\ntrl_rec_distinct_items_served 0\n" in text
    assert f"\ntrl_rec_catalog_items {NUM_ITEMS - 2}\n" in text


def test_a_new_run_is_loaded_without_a_failed_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new run is written while clients send requests. A broken run is not loaded."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recommender.json").write_text("one")

    def load(config: ServingConfig) -> object:
        name = (folder / "recommender.json").read_text()
        if name == "broken":
            raise ValueError("it is broken")
        return make_engine(run=name, prior=UnevenPrior() if name == "two" else None)

    monkeypatch.setattr(reloading, "load_engine", load)
    service = make_service(reload=True, reload_seconds=0.05)
    service.config.model = str(folder)
    statuses: set[int] = set()
    runs: list[str] = []
    is_over = threading.Event()

    def ask(client: Client) -> None:
        while not is_over.is_set():
            answer = client.recommend(["id 1", "id 4"])
            statuses.add(answer.status)
            runs.append(answer.body["run"])

    with running(service, state=watched_state(service.config)) as server, ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, server.client()) for _ in range(3)]
        wait_for(lambda: len(runs) > 10)
        (folder / "recommender.json").write_text("broken")
        wait_for(lambda: service.metrics._counts["reload_failures_total"] == 1)
        assert set(runs) == {"one"}
        (folder / "recommender.json").write_text("two")
        wait_for(lambda: runs[-1] == "two")
        count = len(runs)
        wait_for(lambda: len(runs) > count + 10)
        is_over.set()
        [one.result() for one in asking]
        assert server.client().get("/health").body["run"] == "two"
    assert statuses == {200} and "trl_rec_reloads_total 1" in service.metrics.text(0)
    assert runs.index("two") > 10 and set(runs[-5:]) == {"two"}


def test_a_folder_that_keeps_changing_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recommender.json").write_text("")
    states = iter(range(10**6))
    monkeypatch.setattr(reloading, "watched_state", lambda config: [("file", next(states), 0, 0)])
    monkeypatch.setattr(reloading, "load_engine", lambda config: pytest.fail("loaded"))
    service = make_service(reload=True, reload_seconds=0.01)
    with running(service, state=[("file", -1, 0, 0)]):
        time.sleep(0.2)
    assert next(states) > 3


def test_settings_without_a_model_or_catalogue_are_refused() -> None:
    with pytest.raises(ValueError, match="give --model"):
        ServingConfig()
    with pytest.raises(ValueError, match="needs a catalogue"):
        ServingConfig(lists="recs.parquet")
