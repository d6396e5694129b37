"""Continues training from a run folder after the catalogue has changed. The tests start from source files, and check
the recommended lists."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.runs import QUIET
from trl_rec import BearConfig, BearTrainer, RecDataset, Recommender, prepare
from trl_rec.decoding.run_folder import check_same_items
from trl_rec.models import RecModelConfig
from trl_rec.ragged import Ragged
from trl_rec.scripts import recommend
from trl_rec.serving import UserHistories
from trl_rec.trainer import build_bear_trainer
from trl_rec.trainer.base.prior import make_prior


NUM_ITEMS = 12
OPTIONS = {**QUIET, "max_length": 32, "save_strategy": "no", "final_split": "none", "eval_ks": [5]}


def write_log(folder: Path, items: list[int], unknown_items: str = "drop") -> RecDataset:
    """Prepares a log in which user u chose the items u, u + 1, ..., u + 6 (modulo `NUM_ITEMS`). The catalogue contains
    only `items`, in the given order."""
    source = folder / "source"
    source.mkdir(parents=True)
    with (source / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["item_id", "title"], *([f"i{item}", f"Thing {item}"] for item in items)])
    rows = [[f"u{user}", f"i{(user + step) % NUM_ITEMS}", step] for user in range(10) for step in range(7)]
    with (source / "interactions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["user_id", "item_id", "timestamp"], *rows])
    return prepare(source, folder / "data", unknown_items=unknown_items).with_surface("item_token")


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecDataset, Path]:
    """A dataset, and the run folder of a model with random weights."""
    folder = tmp_path_factory.mktemp("yesterday")
    dataset = write_log(folder, list(range(NUM_ITEMS)))
    config = BearConfig(str(folder / "run"), **OPTIONS)
    trainer = build_bear_trainer(dataset, config, RecModelConfig(hidden_size=16))
    trainer.save_model()
    return dataset, folder / "run"


def continued(dataset: RecDataset, run: Path, output: Path, **options: object) -> BearTrainer:
    return build_bear_trainer(dataset, BearConfig(str(output), **{**OPTIONS, **options}), RecModelConfig(str(run)))


def lists(trainer: BearTrainer, dataset: RecDataset) -> dict[str, list[str]]:
    """Returns the ids of the items recommended to each user."""
    users = dataset.users["user_id"].take(list(dataset.validation["user"])).to_pylist()
    ranked = trainer.rank(dataset.validation).items
    return {user: [dataset.catalog.ids[item] for item in row] for user, row in zip(users, ranked, strict=True)}


def test_permuting_the_catalog_changes_no_list(yesterday, tmp_path: Path) -> None:
    dataset, run = yesterday
    today = write_log(tmp_path, np.random.default_rng(0).permutation(NUM_ITEMS).tolist())
    before = lists(continued(dataset, run, tmp_path / "same"), dataset)
    trainer = continued(today, run, tmp_path / "run")
    assert lists(trainer, today) == before

    # The two run folders also recommend the same lists.
    trainer.save_model()
    check_same_items(tmp_path / "run", today.catalog, today.path)
    old, new = Recommender.from_pretrained(run), Recommender.from_pretrained(tmp_path / "run")
    for history in (["i3"], ["i0", "i7", "i2"]):
        expected = old.recommend(history)
        got = new.recommend(history)
        assert [one.item_id for one in got] == [one.item_id for one in expected]
        assert [one.score for one in got] == pytest.approx([one.score for one in expected], abs=1e-5)


@pytest.mark.parametrize("prior", ["none", "transition"])
def test_removed_items_are_read_and_never_recommended(yesterday, tmp_path: Path, prior: str, caplog) -> None:
    _, run = yesterday
    order = [8, 3, 1, 0, 11, 4, 5, 7, 6, 20]  # 2, 9 and 10 were removed; 20 is new
    today = write_log(tmp_path, order)
    with caplog.at_level(logging.INFO, "trl_rec"):
        strength = {} if prior == "none" else {"prior_strength": "0.5"}
        trainer = continued(today, run, tmp_path / "run", max_steps=1, prior=prior, **strength)
    assert "9 items kept, 1 new, 3 removed" in caplog.text
    trainer.train()
    trainer.save_model()
    with trainer.policy() as policy:
        make_prior(policy, today, trainer.args, tmp_path / "run")

    recommender = Recommender.from_pretrained(tmp_path / "run")
    histories = [["i2"], ["i9", "i10"], ["i3", "i2"], ["i3"]]
    found = [recommender.recommend(history, k=20) for history in histories]
    for history, listed in zip(histories, found, strict=True):
        assert {one.item_id for one in listed} == {f"i{item}" for item in order} - set(history)
    # The model reads i2, which was removed.
    assert {one.item_id: one.score for one in found[2]} != {one.item_id: one.score for one in found[3]}

    # The run can be measured on today's dataset, and tomorrow's training can start from the run.
    check_same_items(tmp_path / "run", today.catalog, today.path)
    back = write_log(tmp_path / "tomorrow", [2, *order[:-1]])
    again = continued(back, tmp_path / "run", tmp_path / "next")
    assert again.catalog.ids[-3:] == ["i20", "i9", "i10"] and again.catalog.num_retired == 3


def test_removed_items_keep_their_places_in_histories(
    yesterday, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = yesterday
    order = [8, 3, 1, 0, 11, 4, 5, 7, 6]  # 2, 9 and 10 were removed
    today = write_log(tmp_path, order, "keep")
    dropped = write_log(tmp_path / "dropped", order)
    assert len(today.catalog) == len(order) and today.card["left_out"] == {}
    for name in ("train", "validation", "test"):
        assert getattr(today, name).to_dict() == getattr(dropped, name).to_dict()
    whole = {f"u{user}": [f"i{(user + step) % NUM_ITEMS}" for step in range(7)] for user in range(10)}
    assert {user: today.history_of(user) for user in whole} == whole
    assert dropped.history_of("u2") == whole["u2"][1:7] and today.unlisted.num_rows == 18

    # A run that continues on today's dataset also knows the removed items.
    continued(today, run, tmp_path / "run").save_model()
    catalog = Recommender.from_pretrained(tmp_path / "run").catalog
    given = UserHistories.of_dataset(today, catalog=catalog)
    found = [[catalog.ids[item] for item in given.histories[row]] for row in range(len(given))]
    assert dict(zip(given.user_ids.to_pylist(), found, strict=True)) == whole and given.num_unknown == 0
    assert UserHistories.of_dataset(today).num_unknown == today.unlisted.num_rows
    assert UserHistories.of_dataset(today, ["u2"]).num_unknown == 1
    words = ["--model", str(tmp_path / "run"), "--dataset", str(today.path), "--user", "u2", "--k", "9"]
    recommend.main(words)
    printed = capsys.readouterr().out.split("recommended")
    assert "Thing 2" in printed[0] and all(f"Thing {item} " not in printed[1] for item in (2, 9, 10))


def test_semantic_ids_must_not_change(yesterday, tmp_path: Path) -> None:
    ids = Ragged.from_lists([[f"<a_{item % 4}>", f"<b_{item}>"] for item in range(NUM_ITEMS)], object)
    write_log(tmp_path, list(range(NUM_ITEMS))).catalog.with_surface("semantic_id", ids).save(
        tmp_path / "data" / "catalog"
    )
    today = prepare(tmp_path / "source", tmp_path / "data", unknown_items="drop").with_surface("semantic_id")
    continued_from = build_bear_trainer(
        today, BearConfig(str(tmp_path / "run"), **OPTIONS), RecModelConfig(hidden_size=16)
    )
    continued_from.save_model()
    assert continued(today, tmp_path / "run", tmp_path / "next").catalog.fingerprint == today.catalog.fingerprint
    other = today.catalog.with_surface("semantic_id", ids.take(np.arange(NUM_ITEMS)[::-1]))
    other.save(tmp_path / "data" / "catalog")
    today = prepare(tmp_path / "source", tmp_path / "data", unknown_items="drop").with_surface("semantic_id")
    with pytest.raises(ValueError, match=r"a different semantic ID from .* has learned \(number of such items: 12\)"):
        continued(today, tmp_path / "run", tmp_path / "other")
