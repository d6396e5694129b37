"""A server that is started with `--lists` answers with the lists of the given file. The tests compute the expected
answers from the same lists with plain loops."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.decoding.recommenders import NUM_ITEMS, catalogue
from tests.serving.servers import make_service, running
from trl_rec import prepare
from trl_rec.serving import ServingConfig
from trl_rec.serving.lists_engine import ListsEngine, load_lists_engine, read_lists
from trl_rec.serving.schema import RecommendRequest


USERS = [f"u{number}" for number in range(6)]


def make_lists() -> dict[str, list[tuple[str, float]]]:
    rng = random.Random(1)
    return {
        user: [(f"id {item}", -rank / 8) for rank, item in enumerate(rng.sample(range(NUM_ITEMS), 12))]
        for user in USERS
    }


def row(user: str, rank: int, item: str, score: float) -> dict[str, object]:
    return {"user_id": user, "rank": rank, "item_id": item, "score": score}


def make_table(shuffled: bool = True) -> pa.Table:
    rows = [
        row(user, rank, item, score)
        for user, ranks in make_lists().items()
        for rank, (item, score) in enumerate(ranks, 1)
    ]
    if shuffled:
        random.Random(2).shuffle(rows)
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def engine() -> ListsEngine:
    return ListsEngine(catalogue("item_token"), make_table(), "recs")


def test_lists_are_those_of_the_file_without_filtered_items(engine: ListsEngine) -> None:
    rows = {row["item_id"]: row for row in catalogue("item_token").items.to_pylist()}
    requests = [
        RecommendRequest(user=user, k=k, history=["id 1", "gone"], exclude=["id 2"], where=[["stock", ">", 0]])
        for user in USERS
        for k in (1, 5, 12)
    ]
    for request, answer in zip(requests, engine.answer(requests), strict=True):
        allowed = [
            one for one in make_lists()[request.user] if one[0] not in ("id 1", "id 2") and rows[one[0]]["stock"] > 0
        ]
        assert [(one.item_id, pytest.approx(one.score, abs=1e-6)) for one in answer] == allowed[: request.k]
        assert answer.unknown == 1 and not answer.fallback
        assert (answer.short is None) == (len(allowed) >= request.k)


def test_retired_items_are_not_recommended() -> None:
    catalog = catalogue("item_token")
    retired = {f"id {item}" for item in range(NUM_ITEMS - 6, NUM_ITEMS)}
    engine = ListsEngine(replace(catalog, num_retired=6), make_table(), "recs")
    requests = [
        RecommendRequest(user=user, k=12, where=where) for user in USERS for where in (None, [["stock", ">=", 0]])
    ]
    for request, answer in zip(requests, engine.answer(requests), strict=True):
        assert [one.item_id for one in answer] == [
            item for item, _ in make_lists()[request.user or ""] if item not in retired
        ]
    # A user whose listed items are all retired gets the items that most lists contain, like a user without a list.
    only = pa.concat_tables([make_table(), pa.Table.from_pylist([row("all retired", 1, f"id {NUM_ITEMS - 1}", 0.0)])])
    engine = ListsEngine(replace(catalog, num_retired=6), only, "recs")
    (popular,) = engine.answer([RecommendRequest(user="all retired", k=12)])
    assert popular.fallback and popular and not retired & {one.item_id for one in popular}


def test_a_dataset_may_lack_the_retired_items_of_the_run_folder(tmp_path: Path) -> None:
    toy = prepare("toy", tmp_path / "data")
    num_retired = 3
    rows = [{**row, "item_id": f"retired {number}"} for number, row in enumerate(toy.catalog.items.to_pylist())]
    items = pa.concat_tables([toy.catalog.items, pa.Table.from_pylist(rows[:num_retired], toy.catalog.items.schema)])
    replace(toy.catalog, items=items, num_retired=num_retired).save(tmp_path / "run/catalog")
    ids = toy.catalog.ids
    lists = [row("u", 1, "retired 0", 1.0), row("u", 2, ids[0], 0.5)]
    pq.write_table(pa.Table.from_pylist(lists), tmp_path / "lists.parquet")
    config = ServingConfig(
        model=str(tmp_path / "run"), lists=str(tmp_path / "lists.parquet"), dataset=str(tmp_path / "data")
    )
    (answer,) = load_lists_engine(config).answer([RecommendRequest(user="u", k=2, history=[])])
    assert [one.item_id for one in answer] == [ids[0]]


def test_groups_are_limited(engine: ListsEngine) -> None:
    rows = {row["item_id"]: row for row in catalogue("item_token").items.to_pylist()}
    (answer,) = engine.answer([RecommendRequest(user="u1", k=12, max_per={"brand": 1})])
    brands = [rows[one.item_id]["brand"] for one in answer]
    assert all(brands.count(brand) == 1 for brand in set(brands) - {None})


def test_a_user_without_a_list_gets_the_items_that_most_lists_contain(engine: ListsEngine) -> None:
    counts: dict[str, int] = {}
    for ranks in make_lists().values():
        for item, _ in ranks:
            counts[item] = counts.get(item, 0) + 1
    (answer,) = engine.answer([RecommendRequest(user="new", k=4)])
    assert answer.fallback
    assert [counts[one.item_id] for one in answer] == sorted(counts.values(), reverse=True)[:4]


def test_invalid_requests_are_refused_one_by_one(engine: ListsEngine) -> None:
    good = RecommendRequest(user="u1")
    answers = engine.answer(
        [good, RecommendRequest(user="u1", exclude=["gone"]), RecommendRequest(user="u2", where=[["x", "==", 1]])]
    )
    assert len(answers[0]) == 10
    assert all(isinstance(one, ValueError) for one in answers[1:])


def test_the_server_answers_from_a_file_without_a_model(tmp_path: Path) -> None:
    catalogue("item_token").save(tmp_path / "run/catalog")
    pq.write_table(make_table(), tmp_path / "recs.parquet")
    config = ServingConfig(model=str(tmp_path / "run"), lists=str(tmp_path / "recs.parquet"))
    with running(make_service(load_lists_engine(config))) as server:
        answer = server.client().post("/v1/recommend", {"user": "u3", "k": 2})
        assert [one["item_id"] for one in answer.body["items"]] == [item for item, _ in make_lists()["u3"][:2]]
        card = server.client().get("/v1/model").body
        assert card["kind"] == "lists" and card["num_users"] == 6 and not card["explains"]
        explained = server.client().post("/v1/explain", {"history": ["id 1"], "item_id": "id 2"})
        assert explained.status == 422 and "only a model can explain" in explained.body["detail"]


def changed(**columns: object) -> pa.Table:
    table = make_table(shuffled=False)
    for name, column in columns.items():
        table = (
            table.drop_columns([name])
            if column is None
            else table.set_column(table.column_names.index(name), name, column)
        )
    return table


NUMBER = len(USERS) * 12
BROKEN = {
    "has no column rank": {"rank": None},
    "unsuitable types": {"score": pa.array(["high"] * NUMBER)},
    "1 missing values": {"item_id": pa.array([None, *["id 1"] * (NUMBER - 1)])},
    "not finite": {"score": pa.array([float("nan")] * NUMBER)},
    "twice in the list": {"item_id": pa.array(["id 1"] * NUMBER)},
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_file_without_valid_lists_is_refused(message: str, tmp_path: Path) -> None:
    pq.write_table(changed(**BROKEN[message]), tmp_path / "recs.parquet")
    with pytest.raises(ValueError, match=message):
        read_lists(tmp_path / "recs.parquet")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        read_lists(tmp_path / "gone.parquet")
    (tmp_path / "text.parquet").write_text("user_id,rank")
    with pytest.raises(ValueError, match="not a Parquet file of lists"):
        read_lists(tmp_path / "text.parquet")
