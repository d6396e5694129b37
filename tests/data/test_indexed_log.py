"""Sorts and filters random logs in blocks, removes repeated interactions, and compares the results with plain
Python."""

import numpy as np
import pyarrow as pa
import pytest

from trl_rec.data import indexed_log as module
from trl_rec.data.filtering import drop_repeats, k_core
from trl_rec.data.indexed_log import IndexedLog, code_log, sort_log
from trl_rec.data.interactions import interactions_table
from trl_rec.data.log import Log


def make_log(rng, num_interactions, num_users, num_items, num_times=10):
    """Returns the columns of an unsorted log, and the same interactions as an IndexedLog."""
    columns = {
        "user_id": pa.array(rng.integers(0, num_users, num_interactions)).cast(pa.string()),
        "item_id": pa.array((num_items * rng.random(num_interactions) ** 2).astype(int)).cast(pa.string()),
        "timestamp": rng.integers(0, num_times, num_interactions),
    }
    log = Log(interactions=interactions_table(pa.table(columns), "log"), names={"interactions": "log"})
    return columns, sort_log(code_log(log)[0])[0]


def triples(log):
    """Returns the ids of users and items, and the times, in the order of the log."""
    users = log.users["user_id"].to_pylist()
    items = log.items["item_id"].to_pylist()
    rows = zip(log.user.tolist(), log.item.tolist(), log.timestamp.tolist(), strict=True)
    return [(users[user], items[item], time) for user, item, time in rows]


@pytest.mark.parametrize("block", [1, 50, 10_000])
# `_order` sorts a long log first by ranges of users. With more than 2**16 users, a range contains several users.
@pytest.mark.parametrize("num_users", [3, 70_000])
def test_the_order_equals_that_of_a_stable_sort(monkeypatch, block, num_users):
    rng = np.random.default_rng(block)
    user = rng.integers(0, num_users, 3000).astype(np.int32)
    time = rng.integers(0, 5, 3000).astype(np.float64)
    monkeypatch.setattr(module, "BLOCK", block)
    assert module._order(user, num_users, time).tolist() == np.lexsort((time, user)).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_a_log_processed_in_blocks_equals_plain_python(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(module, "BLOCK", int(rng.integers(1, 40)))
    columns, log = make_log(rng, 400, 60, 40)

    # 1. Sorting: by user in order of first appearance, then by time. Equal times keep the order of the source.
    rows = list(zip(*(list(pa.array(column).to_pylist()) for column in columns.values()), strict=True))
    order = {user: number for number, user in reversed([*enumerate(row[0] for row in rows)])}
    expected = sorted(rows, key=lambda row: (order[row[0]], row[2]))
    assert triples(log) == expected

    # 2. Filtering: repeatedly find an interaction whose user or item has too few interactions. Remove all interactions
    # of this user with this item.
    core = expected
    while True:
        few = [row for row in core if min(sum(other[side] == row[side] for other in core) for side in (0, 1)) < 5]
        if not few:
            break
        core = [row for row in core if row[:2] != few[0][:2]]
    if core:
        assert triples(k_core(log, 5, 5)) == core
    else:
        with pytest.raises(ValueError, match="no interactions are left"):
            k_core(log, 5, 5)

    # 3. Repeats: of a user's interactions with the same item, only the first or only the last is kept.
    first = [row for place, row in enumerate(expected) if row[:2] not in [other[:2] for other in expected[:place]]]
    last = [row for place, row in enumerate(expected) if row[:2] not in [other[:2] for other in expected[place + 1 :]]]
    assert triples(drop_repeats(log, "first")) == first
    assert triples(drop_repeats(log, "last")) == last


def test_no_user_is_divided_between_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    user = np.repeat(np.arange(4, dtype=np.int32), [2, 7, 3, 1])
    empty = np.zeros(len(user), np.int32)
    log = IndexedLog(pa.table({"user_id": ["a", "b", "c", "d"]}), pa.table({}), user, empty, empty, None)
    assert [(users.start, users.stop, part.start, part.stop) for users, part in log.blocks()] == [
        (0, 1, 0, 2),
        (1, 2, 2, 9),
        (2, 4, 9, 13),
    ]
