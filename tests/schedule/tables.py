"""Makes small catalogues for tests, and splits from lists of rows."""

import pyarrow as pa
from datasets import Dataset
from hypothesis import strategies as st

from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


NUM_ITEMS = 9
items = st.integers(0, NUM_ITEMS - 1)
# Rows `(user, history, targets)`. A user may have several rows, as in data whose rows are overlapping windows of a
# user's sequence, and may choose an item more than once.
training_rows = st.lists(
    st.tuples(st.integers(0, 3), st.lists(items, max_size=3), st.lists(items, max_size=6)), min_size=1, max_size=5
).filter(lambda rows: any(targets for _, _, targets in rows))


def make_split(rows, scores=None, split="train"):
    """Returns a split of `(user, history, targets)` rows. `scores` has one list per row: the ratings of the history,
    then those of the targets."""
    lists, numbers = pa.list_(pa.int32()), pa.list_(pa.float32())
    ratings = [[]] * len(rows), [[]] * len(rows)
    if scores is not None:
        cuts = [(row, len(history)) for row, (_, history, _) in zip(scores, rows, strict=True)]
        ratings = [row[:cut] for row, cut in cuts], [row[cut:] for row, cut in cuts]
    columns = {
        "user": pa.array([row[0] for row in rows], pa.int32()),
        "history": pa.array([row[1] for row in rows], lists),
        "history_ratings": pa.array(ratings[0], numbers),
        "targets": pa.array([row[2] for row in rows], lists),
        "target_ratings": pa.array(ratings[1], numbers),
    }
    return Dataset(pa.table(columns), split=split)


def make_catalog(surface, num_items=NUM_ITEMS):
    """Returns a catalogue in which three items share each title, and some items share a semantic ID."""
    titles = [f"title {index % max(num_items // 3, 1)}" for index in range(num_items)]
    table = pa.table({"item_id": [str(index) for index in range(num_items)], "title": titles})
    ids = [
        [f"<a_{index % 2}>", f"<b_{index % 4 // 2}>", f"<c_{index // 2 % 4}>"][: 2 + index % 2]
        for index in range(num_items)
    ]
    return ItemCatalog(table, surface, semantic_ids=Ragged.from_lists(ids, object))


def rows_of(table, *names):
    """Returns the named columns as one tuple per row."""
    return list(zip(*(table[:][name] for name in names), strict=True))
