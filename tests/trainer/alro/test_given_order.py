"""Tests training prompts that show the candidates in the order of their mean ratings. The mean of a candidate leaves
out the candidate's label, which is the first rating that the user of the prompt gave it."""

from pathlib import Path

import numpy as np
import pytest

from tests.trainer.alro.alro_runs import make_folder, make_trainer
from tests.trainer.runs import QUIET
from trl_rec import AlroConfig, load
from trl_rec.trainer import build_rated_rows
from trl_rec.trainer.alro.given_order import DAMPING, GivenOrder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alro")
    make_folder(path)
    return path


def test_the_order_is_by_the_mean_rating_of_the_other_users(folder: Path) -> None:
    """Compares the order with a loop over the log of the training split."""
    dataset = load(folder / "data")
    log = {}
    for row in dataset.train.to_list():
        items, ratings = row["history"] + row["targets"], row["history_ratings"] + row["target_ratings"]
        log |= {(row["user"], item): rating for item, rating in zip(items, ratings, strict=True)}
    overall = np.mean([*log.values()])
    order = GivenOrder.from_split(dataset.train, len(dataset.catalog))
    rows = build_rated_rows(dataset.train, num_candidates=4).to_list()
    for row in rows:
        means = []
        for item in row["candidates"]:
            others = [rating for (user, other), rating in log.items() if other == item and user != row["user"]]
            means.append((sum(others) + DAMPING * overall) / (len(others) + DAMPING))
        expected = sorted(range(len(means)), key=lambda place: -round(means[place], 9))
        assert order.slots(np.array(row["candidates"]), np.array(row["ratings"])).tolist() == expected
    orders = [order.slots(np.array(row["candidates"]), np.array(row["ratings"])).tolist() for row in rows]
    assert any(one != sorted(one) for one in orders)


def test_an_item_that_only_the_user_of_the_row_rated_has_no_mean_of_its_own() -> None:
    """If the row's own user counted, the mean of an item that nobody else rated would follow this user's rating, and
    the order would reveal the rating."""
    order = GivenOrder(np.array([5.0, 1.0, 30.0]), np.array([1, 1, 10]))
    assert order.slots(np.array([1, 0]), np.array([1.0, 5.0])).tolist() == [0, 1]
    assert order.slots(np.array([0, 1]), np.array([5.0, 1.0])).tolist() == [0, 1]


@pytest.mark.parametrize("permutation_weight", [0.0, 1.0])
def test_the_first_order_is_by_mean_rating_and_the_second_is_random(
    folder: Path, tmp_path: Path, permutation_weight: float
) -> None:
    options = {"candidate_order": "given", "permutation_weight": permutation_weight}
    trainer = make_trainer(folder, tmp_path, **options)
    order = GivenOrder.from_split(load(folder / "data").train, len(trainer.catalog))
    collator, letters = trainer.data_collator, trainer.rated_format.letters
    seen = set()
    for epoch in (0.0, 1.0, 2.0):
        collator.epoch = epoch
        for number in range(6):
            row = trainer.train_dataset[number]
            count = len(row["candidates"])
            names = collator([row])["names"][0, :, :count].numpy()
            given = order.slots(np.array(row["candidates"]), np.array(row["ratings"]))
            assert names.shape[0] == 1 + bool(permutation_weight)
            np.testing.assert_array_equal(names[0][given], letters[:count])
            if permutation_weight:
                assert (names[1] != names[0]).any()
                seen.add((number, tuple(names[1].tolist())))
    assert not permutation_weight or len(seen) > 6  # the second order changes with the epoch


@pytest.mark.parametrize("num_orders", [1, 2, 3, 4, 7])
def test_two_candidates_are_shown_in_any_number_of_orders(folder: Path, tmp_path: Path, num_orders: int) -> None:
    """Two candidates have only two orders. The order by mean rating is shown first. All further orders are its
    reverse, however many are requested."""
    trainer = make_trainer(folder, tmp_path, candidate_order="given", num_candidates=2)
    collator, letters = trainer.data_collator, trainer.rated_format.letters
    collator.num_orders = num_orders
    rows = [trainer.train_dataset[number] for number in range(6)]
    names = collator(rows)["names"].numpy()
    assert names.shape == (6, num_orders, 2)
    for row, shown in zip(rows, names, strict=True):
        given = collator.given_order.slots(np.array(row["candidates"]), np.array(row["ratings"]))
        np.testing.assert_array_equal(shown[0][given], letters[:2])
        assert (shown[1:] != shown[0]).all()


def test_rows_without_a_training_split_cannot_be_ordered_by_mean_rating(folder: Path, tmp_path: Path) -> None:
    rows = build_rated_rows(load(folder / "data").train, num_candidates=4)
    with pytest.raises(ValueError, match="pass RecDataset.train as train_dataset"):
        make_trainer(folder, tmp_path, candidate_order="given", train_dataset=rows)
    with pytest.raises(ValueError, match="candidate_order must be one of shuffled, given, not 'random'"):
        AlroConfig(str(tmp_path), candidate_order="random", **QUIET)
