"""Plants leaks, such as held-out items, in clean preference tables, and tests that each leak raises an error."""

from types import SimpleNamespace

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import preferences as oracle
from tests.schedule.tables import items, make_split, training_rows
from trl_rec.data import RecDataset, prepare
from trl_rec.schedule import check_preference_leaks, feedback_preferences, random_preferences, training_prefixes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    return prepare("toy", tmp_path_factory.mktemp("data") / "toy", toy_users=24, toy_items=60)


@pytest.fixture(scope="module")
def feedback(dataset: RecDataset) -> Dataset:
    return feedback_preferences(dataset.train, difficulty="easy", max_history=5)


def planted(table: Dataset, row: int, **changed) -> Dataset:
    """Returns the table with some values of one row replaced."""
    rows = table.to_list()
    rows[row] |= changed
    return Dataset(pa.Table.from_pylist(rows, table.data.schema), split="train")


def held_out(dataset: RecDataset, user: int, split: str) -> int:
    """Returns the target of the user in a split."""
    rows = getattr(dataset, split)
    return rows["targets"][rows["user"].index(user)][0]


def test_clean_tables_pass(dataset, feedback) -> None:
    check_preference_leaks(feedback, dataset, feedback=True)
    for max_history in (None, 1, 3):
        prefixes = training_prefixes(dataset.train, max_history=max_history)
        check_preference_leaks(random_preferences(prefixes, 60, train=dataset.train), dataset, feedback=False)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("of_feedback", [False, True])
def test_a_held_out_target_as_the_chosen_item_is_an_error(dataset, feedback, split, of_feedback) -> None:
    row = 7
    user = feedback["user"][row]
    item = held_out(dataset, user, split)
    with pytest.raises(
        ValueError, match=rf"leak: row {row}: item {item} does not .*user {user} .*a target of the {split} split"
    ):
        check_preference_leaks(planted(feedback, row, chosen=item), dataset, feedback=of_feedback)


def test_a_whole_held_out_row_is_an_error(dataset, feedback) -> None:
    """The whole history of a validation row is in the training split, but the target of this row is not."""
    user = feedback["user"][7]
    history = dataset.validation["history"][dataset.validation["user"].index(user)]
    row = {"history": history, "chosen": held_out(dataset, user, "validation")}
    with pytest.raises(ValueError, match="leak: row 7: item"):
        check_preference_leaks(planted(feedback, 7, **row), dataset, feedback=False)


def test_a_held_out_item_in_a_history_is_an_error(dataset, feedback) -> None:
    history = feedback["history"][7]
    for place in range(len(history)):
        changed = [*history[:place], held_out(dataset, feedback["user"][7], "validation"), *history[place + 1 :]]
        with pytest.raises(ValueError, match="leak: row 7: item"):
            check_preference_leaks(planted(feedback, 7, history=changed), dataset, feedback=False)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_feedback_is_an_error(dataset, feedback, split) -> None:
    row = max(range(len(feedback)), key=lambda row: len(feedback["rejected"][row]))
    user, rejected = feedback["user"][row], feedback["rejected"][row]
    item = held_out(dataset, user, split)
    table = planted(feedback, row, rejected=[*rejected, item])
    with pytest.raises(
        ValueError, match=rf"leak: row {row} rejects item {item}.*user {user} .*a target of the {split} split"
    ):
        check_preference_leaks(table, dataset, feedback=True)
    # `feedback=False` is for self-play and random negatives, which can include held-out items.
    check_preference_leaks(table, dataset, feedback=False)


def test_a_row_of_another_user_is_an_error(dataset, feedback) -> None:
    other = next(user for user in feedback["user"] if user != feedback["user"][0])
    with pytest.raises(ValueError, match="leak: row 0: item"):
        check_preference_leaks(planted(feedback, 0, user=other), dataset, feedback=False)


def one_row(user: int, history: list[int], chosen: int) -> Dataset:
    columns = {
        "user": pa.array([user], pa.int32()),
        "history": pa.array([history], pa.list_(pa.int32())),
        "chosen": pa.array([chosen], pa.int32()),
        "rejected": pa.array([[]], pa.list_(pa.int32())),
    }
    return Dataset(pa.table(columns), split="train")


def trained_on(rows) -> SimpleNamespace:
    empty = make_split([], split="test")
    return SimpleNamespace(train=make_split(rows), validation=empty, test=empty)


@pytest.mark.parametrize(
    "row",
    [
        (0, [6, 3], 4),  # the history begins with an item of another user
        (0, [9, 6, 3], 4),  # the history begins with an item that no row contains
        (0, [], 3),  # the chosen item is not a target
        (0, [3], 6),  # the chosen item is a target of another user
        (2, [], 4),  # a user without training rows
        (0, [4], 3),  # history and target are swapped
    ],
)
def test_a_row_that_is_no_training_prefix_is_an_error(row) -> None:
    """A training prefix is a training target of a user and the history directly before it, which may lack its oldest
    items."""
    dataset = trained_on([(1, [5], [6]), (0, [3], [4])])
    with pytest.raises(ValueError, match="leak: row 0: item"):
        check_preference_leaks(one_row(*row), dataset, feedback=False)
    check_preference_leaks(one_row(0, [3], 4), dataset, feedback=False)


@given(st.data(), training_rows)
def test_the_check_equals_a_loop(data, rows) -> None:
    dataset = trained_on(rows)
    row = st.tuples(st.integers(0, 3), st.lists(items, max_size=4), items)
    true = st.builds(
        lambda prefix, cut: (prefix[0], prefix[1][cut:], prefix[2]),
        st.sampled_from(oracle.prefixes(rows)),
        st.integers(0, 3),
    )
    user, history, chosen = data.draw(row | true)
    table = one_row(user, history, chosen)
    if oracle.is_prefix(rows, user, history, chosen):
        check_preference_leaks(table, dataset, feedback=True)
    else:
        with pytest.raises(ValueError, match="leak: row 0: item"):
            check_preference_leaks(table, dataset, feedback=True)
