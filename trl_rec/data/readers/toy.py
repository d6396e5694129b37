"""A small log made from a seed: users with tastes that drift, items with genres and titles, ratings and timestamps.

Half of the steps follow from the item before (each item has a few follow-ups), the other half from taste and
popularity, so that counting transitions beats popularity and popularity beats chance. No user meets an item twice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from trl_rec.data.columns import interactions_table, items_table, users_table
from trl_rec.data.log import Log, Options
from trl_rec.ragged import Ragged


OPTIONS = frozenset({"seed", "toy_users", "toy_items"})
GENRES = ["Adventure", "Comedy", "Crime", "Drama", "Fantasy", "Mystery", "Romance", "Western"]
FIRST = (
    "Amber Broken Copper Distant Empty Frozen Gentle Hidden Iron Jade Lonely Midnight Paper Quiet Red Silver".split()
)
SECOND = "Anchor Bridge Castle Desert Forest Garden Harbor Island Journey Lantern Mirror Orchard River Tower".split()
THIRD = [
    "",
    " Road",
    " Song",
    " Letters",
    " Again",
    " at Dawn",
    " of the South",
    " in Spring",
    " Revisited",
    " for Two",
]
NUM_STEPS = (20, 40)  # interactions of a user
NUM_FOLLOWERS = 3
FOLLOWING = 0.5  # chance that a step goes to a follow-up of the last item


def find(folder: Path) -> dict[str, Path]:
    """No files: the log is asked for by its name."""
    return {}


def read(files: dict[str, Path], options: Options) -> Log:
    """The log of `options.seed`, with `options.toy_users` users and `options.toy_items` items."""
    num_users, num_items, most = options.toy_users, options.toy_items, len(FIRST) * len(SECOND) * len(THIRD)
    if num_users < 1 or not NUM_STEPS[1] < num_items <= most:
        raise ValueError(
            f"toy_users must be positive, and toy_items between {NUM_STEPS[1] + 1} and {most}; got {num_users}, {num_items}"
        )
    rng = np.random.default_rng(options.seed)
    membership = _membership(rng, num_items)
    tastes = rng.normal(0, 1.5, (num_users, len(GENRES)))
    items, affinity = _walk(rng, tastes, membership)
    return Log(
        interactions=_interactions(rng, items, affinity),
        items=items_table(_items(rng, membership), "items"),
        users=users_table(_users(rng, tastes), "users"),
        group_column="genres",
        names={"interactions": "interactions"},
    )


def _membership(rng: np.random.Generator, num_items: int) -> np.ndarray:
    """`(num_items, num_genres)`: true for the one to three genres of each item."""
    order = np.argsort(rng.random((num_items, len(GENRES))), axis=1).argsort(axis=1)
    return order < rng.integers(1, 4, (num_items, 1))


def _walk(rng: np.random.Generator, tastes: np.ndarray, membership: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items that each user meets, `(num_users, num_steps)`, and how much each was to the user's taste at that
    moment."""
    num_users, num_items, rows = len(tastes), len(membership), np.arange(len(tastes))
    genres = membership / membership.sum(1, keepdims=True)
    popularity = rng.permutation(-0.8 * np.log(np.arange(1, num_items + 1)))
    followers = rng.integers(0, num_items, (num_items, NUM_FOLLOWERS))
    unseen, last = np.ones((num_users, num_items), bool), rng.integers(0, num_items, num_users)
    items, affinity = np.empty((2, num_users, NUM_STEPS[1]))
    for step in range(NUM_STEPS[1]):
        tastes = tastes + rng.normal(0, 0.15, tastes.shape)
        liking = tastes @ genres.T
        drawn = np.where(unseen, liking + popularity + rng.gumbel(size=liking.shape), -np.inf).argmax(1)
        follower = followers[last, rng.integers(0, NUM_FOLLOWERS, num_users)]
        last = np.where((rng.random(num_users) < FOLLOWING) & unseen[rows, follower], follower, drawn)
        unseen[rows, last] = False
        items[:, step], affinity[:, step] = last, liking[rows, last]
    return items.astype(np.int64), affinity


def _interactions(rng: np.random.Generator, items: np.ndarray, affinity: np.ndarray) -> pa.Table:
    """Each user's first 20 to 40 steps, one to a hundred hours apart, rated 1 to 5 by taste."""
    num_users, num_steps = items.shape
    kept = np.arange(num_steps) < rng.integers(NUM_STEPS[0], num_steps + 1, (num_users, 1))
    rating = np.clip(np.rint(3.4 + 0.8 * affinity + rng.normal(0, 0.6, affinity.shape)), 1, 5)
    start = 1_600_000_000 + rng.integers(0, 31_536_000, (num_users, 1))
    timestamp = start + np.cumsum(rng.integers(3_600, 360_000, items.shape), axis=1)
    columns = {
        "user_id": pa.array(np.nonzero(kept)[0] + 1).cast(pa.string()),
        "item_id": pa.array(items[kept] + 1).cast(pa.string()),
        "timestamp": timestamp[kept].astype(np.float64),
        "rating": rating[kept],
    }
    return interactions_table(pa.table(columns), "interactions")


def _items(rng: np.random.Generator, membership: np.ndarray) -> pa.Table:
    names = [f"{first} {second}{third}" for third in THIRD for first in FIRST for second in SECOND][: len(membership)]
    genres = Ragged.from_lengths(np.nonzero(membership)[1], membership.sum(1))
    lists = pa.ListArray.from_arrays(
        pa.array(genres.offsets, pa.int32()), pa.array(GENRES).take(pa.array(genres.values))
    )
    item_ids = pa.array(np.arange(1, len(membership) + 1)).cast(pa.string())
    return pa.table({"item_id": item_ids, "title": pa.array(rng.permutation(names).tolist()), "genres": lists})


def _users(rng: np.random.Generator, tastes: np.ndarray) -> pa.Table:
    user_ids = pa.array(np.arange(1, len(tastes) + 1)).cast(pa.string())
    likes = pa.array(GENRES).take(pa.array(tastes.argmax(1)))
    return pa.table({"user_id": user_ids, "age": rng.integers(16, 80, len(tastes)), "likes": likes})
