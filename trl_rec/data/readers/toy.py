"""Generates a small log from a seed: users with drifting tastes, items with titles and genres, and rated interactions.

Each item has a few followers: random items that often come right after it. In almost half of the steps, the next item
is a follower of the last item; otherwise it is drawn by taste and popularity. Therefore the transition baseline beats
the popularity baseline, which beats the random baseline. No user chooses the same item twice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from trl_rec.data.columns import items_table, users_table
from trl_rec.data.interactions import interactions_table
from trl_rec.data.log import Log, Options, Reader
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT, Range


GENRES = ["Adventure", "Comedy", "Crime", "Drama", "Fantasy", "Mystery", "Romance", "Western"]
# A title consists of a first word, a second word and an ending: "Silver Mirror at Dawn".
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
MOST_ITEMS = len(FIRST) * len(SECOND) * len(THIRD)
NUM_STEPS = (20, 40)  # minimum and maximum number of interactions per user
NUM_FOLLOWERS = 3
# Probability that a step picks a random follower of the last item. If the user has already seen this follower, the
# next item is drawn by taste and popularity instead.
FOLLOWING = 0.5


class ToyReader(Reader):
    """Reader that generates the log from a seed, without files."""

    options = frozenset({"seed", "toy_users", "toy_items"})
    needs_folder = False
    license = "cc0-1.0"

    def find(self, folder: Path) -> dict[str, Path]:
        """Returns an empty dict, since the format has no files."""
        return {}

    def read(self, files: dict[str, Path], options: Options) -> Log:
        """Generates the log from `options.seed`, with `options.toy_users` users and `options.toy_items` items."""
        num_users = options.toy_users
        num_items = options.toy_items
        COUNT.check("toy_users", num_users)
        Range(NUM_STEPS[1] + 1, MOST_ITEMS, whole=True).check("toy_items", num_items)

        # Do not change the order of the random draws, because a seed must always give the same log.
        rng = np.random.default_rng(options.seed)
        membership = _make_membership(rng, num_items)
        tastes = rng.normal(0, 1.5, (num_users, len(GENRES)))
        items, affinity = _make_walks(rng, tastes, membership)
        return Log(
            interactions=_make_interactions(rng, items, affinity),
            items=items_table(_make_items(rng, membership), "items"),
            users=users_table(_make_users(rng, tastes), "users"),
            group_column="genres",
            names={"interactions": "interactions"},
        )


def _make_membership(rng: np.random.Generator, num_items: int) -> np.ndarray:
    """Draws one to three genres per item. Returns a boolean array, `(num_items, num_genres)`."""
    ranks = np.argsort(rng.random((num_items, len(GENRES))), axis=1).argsort(axis=1)
    return ranks < rng.integers(1, 4, (num_items, 1))


def _make_walks(rng: np.random.Generator, tastes: np.ndarray, membership: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws the items of each user.

    Returns the items, and how well each item fits the taste of the user at that step. Both are
    `(num_users, num_steps)`.
    """
    num_users = len(tastes)
    num_items = len(membership)
    users = np.arange(num_users)
    genres = membership / membership.sum(1, keepdims=True)  # (num_items, num_genres)
    popularity = rng.permutation(-0.8 * np.log(np.arange(1, num_items + 1)))  # (num_items,)
    followers = rng.integers(0, num_items, (num_items, NUM_FOLLOWERS))

    unseen = np.ones((num_users, num_items), bool)
    last = rng.integers(0, num_items, num_users)  # (num_users,)
    items, affinity = np.empty((2, num_users, NUM_STEPS[1]))
    for step in range(NUM_STEPS[1]):
        # 1. Change the tastes a little.
        tastes = tastes + rng.normal(0, 0.15, tastes.shape)
        liking = tastes @ genres.T  # (num_users, num_items)

        # 2. Draw an unseen item by taste and popularity. The argmax of scores plus Gumbel noise is a softmax sample.
        scores = liking + popularity + rng.gumbel(size=liking.shape)
        drawn = np.where(unseen, scores, -np.inf).argmax(1)

        # 3. Half of the time, take a follower of the last item instead, if the user has not seen that follower.
        follower = followers[last, rng.integers(0, NUM_FOLLOWERS, num_users)]
        last = np.where((rng.random(num_users) < FOLLOWING) & unseen[users, follower], follower, drawn)
        unseen[users, last] = False
        items[:, step] = last
        affinity[:, step] = liking[users, last]
    return items.astype(np.int64), affinity


def _make_interactions(rng: np.random.Generator, items: np.ndarray, affinity: np.ndarray) -> pa.Table:
    """Makes the interactions: the first 20 to 40 steps of each user, 1 to 100 hours apart, rated 1 to 5 by taste."""
    num_users, num_steps = items.shape
    lengths = rng.integers(NUM_STEPS[0], num_steps + 1, (num_users, 1))
    kept = np.arange(num_steps) < lengths  # (num_users, num_steps)
    rating = np.clip(np.rint(3.4 + 0.8 * affinity + rng.normal(0, 0.6, affinity.shape)), 1, 5)
    start = 1_600_000_000 + rng.integers(0, 31_536_000, (num_users, 1))  # within a year from September 2020
    timestamp = start + np.cumsum(rng.integers(3_600, 360_000, items.shape), axis=1)
    columns = {
        "user_id": pa.array(np.nonzero(kept)[0] + 1).cast(pa.string()),
        "item_id": pa.array(items[kept] + 1).cast(pa.string()),
        "timestamp": timestamp[kept].astype(np.float64),
        "rating": rating[kept],
    }
    return interactions_table(pa.table(columns), "interactions")


def _make_items(rng: np.random.Generator, membership: np.ndarray) -> pa.Table:
    """Makes the table of items: ids, titles and genres."""
    titles = [f"{first} {second}{third}" for third in THIRD for first in FIRST for second in SECOND]
    genres = Ragged.from_lengths(np.nonzero(membership)[1], membership.sum(1))
    names = pa.array(GENRES).take(pa.array(genres.values))
    columns = {
        "item_id": pa.array(np.arange(1, len(membership) + 1)).cast(pa.string()),
        "title": pa.array(rng.permutation(titles[: len(membership)]).tolist()),
        "genres": pa.ListArray.from_arrays(pa.array(genres.offsets, pa.int32()), names),
    }
    return pa.table(columns)


def _make_users(rng: np.random.Generator, tastes: np.ndarray) -> pa.Table:
    """Makes the table of users: ids, ages, and each user's favourite genre before the tastes drift."""
    columns = {
        "user_id": pa.array(np.arange(1, len(tastes) + 1)).cast(pa.string()),
        "age": rng.integers(16, 80, len(tastes)),
        "likes": pa.array(GENRES).take(pa.array(tastes.argmax(1))),
    }
    return pa.table(columns)
