"""Looks up items by their exact titles, and searches for items by words in their titles or by id."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.items import ItemCatalog


MOST_SORTED = 2000  # a search keeps and sorts at most this many matches, the first ones of the catalogue
LONGEST_QUERY = 200  # characters; the rest of a longer query is not compared with titles


class TitleIndex:
    """Looks up the titles of a catalogue.

    Args:
        catalog (`ItemCatalog`): The items.
    """

    def __init__(self, catalog: ItemCatalog) -> None:
        self._catalog = catalog

    def ids_of(self, titles: list[str]) -> tuple[list[str], int]:
        """Returns the ids of the items with these titles, and the number of titles that no item has.

        If several items share a title, the id of the first of them is returned.
        """
        found = [self._positions[title] for title in titles if title in self._positions]
        return [self._catalog.ids[index] for index in found], len(titles) - len(found)

    def search(self, query: str, limit: int) -> list[int]:
        """Returns the indices of the items whose titles contain all words of a query, or whose id is the query.

        A word of the query may also be part of a longer word. Titles are compared in lower case. The item whose id is
        the query is listed first, followed by the titles that begin with the query, the titles in which a word begins
        with the query's first word, and all other matches. Within each of these groups, shorter titles come first. An
        empty query finds every item, in the order of the catalogue. Retired items, which were removed from the
        catalogue, are never found.
        """
        count = self._catalog.num_recommendable
        wanted = " ".join(query[:LONGEST_QUERY].lower().split())
        if not wanted:
            return list(range(min(limit, count)))

        # 1. Find the titles that contain every word.
        words = wanted.split()
        mask = np.ones(count, bool)
        for word in dict.fromkeys(words):
            mask &= pc.match_substring(self._lower, word).to_numpy(zero_copy_only=False)
        found = np.flatnonzero(mask)[:MOST_SORTED].tolist()

        # 2. Sort them by how well they match.
        titles = self._lower.take(pa.array(found, pa.int64())).to_pylist()

        def order(place: int) -> tuple[bool, bool, int, int]:
            """Returns the sort key of a match. Matches with smaller keys are listed first."""
            title = titles[place]
            return (not title.startswith(wanted), f" {words[0]}" not in f" {title}", len(title), found[place])

        ranked = [found[place] for place in sorted(range(len(found)), key=order)]

        # 3. An exact id comes first.
        own = self._catalog.positions.get(query.strip())
        if own is not None and own < count:
            ranked = [own, *(index for index in ranked if index != own)]
        return ranked[:limit]

    @cached_property
    def _positions(self) -> dict[str, int]:
        """The index of the first item with each title."""
        titles = self._catalog.titles
        return {titles[index]: index for index in reversed(range(len(titles)))}

    @cached_property
    def _lower(self) -> pa.Array:
        """The titles of the items that can be recommended, in lower case, with single spaces."""
        titles = self._catalog.items["title"].slice(0, self._catalog.num_recommendable)
        lower = pc.utf8_lower(titles.combine_chunks())
        return pc.replace_substring_regex(lower, r"\s+", " ")
