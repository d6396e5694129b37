"""Defines the results of [`Recommender`]: recommended lists, and explanations of single items."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Recommendation(NamedTuple):
    """One item of a recommended list, with its score."""

    item_id: str
    title: str
    score: float


class RecommendedList(list[Recommendation]):
    """A list of [`Recommendation`]s, best first.

    Args:
        ranks (iterable of [`Recommendation`], *optional*): The recommended items.
        unknown (`int`, *optional*, defaults to `0`): Number of ids of the history that were dropped, because the
            catalogue does not contain them.
        fallback (`bool`, *optional*, defaults to `False`): Whether the list was ranked by the prior alone, because the
            history is empty or contains only unknown ids.
        short (`str`, *optional*): A sentence that says why the list has fewer items than requested. None if the list
            has the requested number of items.
    """

    def __init__(
        self,
        ranks: Iterable[Recommendation] = (),
        *,
        unknown: int = 0,
        fallback: bool = False,
        short: str | None = None,
    ) -> None:
        super().__init__(ranks)
        self.unknown = unknown
        self.fallback = fallback
        self.short = short


class Explanation(NamedTuple):
    """An item of the history, and how much it changed the score of the explained item.

    The difference is the score with the whole history, minus the score without this item of the history.
    """

    item_id: str
    title: str
    difference: float
