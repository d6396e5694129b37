"""Tests the title search in a catalogue with retired items."""

from dataclasses import replace

import pyarrow as pa

from trl_rec import ItemCatalog
from trl_rec.serving.titles import TitleIndex


TITLES = ["Blue Lamp", "Red Lamp", "Old Lamp", "Blue Mug"]  # the last two are retired
CATALOG = ItemCatalog(pa.table({"item_id": list("abcd"), "title": TITLES}), num_retired=2)


def test_retired_items_are_not_found_but_stay_readable() -> None:
    titles = TitleIndex(CATALOG)
    everything = TitleIndex(replace(CATALOG, num_retired=0))
    for query, all_of_them, found in (
        ("", [0, 1, 2, 3], [0, 1]),
        ("lamp", [2, 1, 0], [1, 0]),
        ("mug", [3], []),
        ("c", [2], []),  # the exact id of a retired item
        ("b", [1, 3, 0], [1, 0]),
    ):
        assert sorted(everything.search(query, 9)) == sorted(all_of_them), query
        assert sorted(titles.search(query, 9)) == sorted(found), query
    # Titles of a history are found even if the items are retired.
    assert titles.ids_of(["Blue Mug", "Red Lamp", "nothing"]) == (["d", "b"], 1)
