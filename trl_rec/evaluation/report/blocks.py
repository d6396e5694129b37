"""Defines the parts of a report: sections with verdicts, tables, charts, lists of items, facts and texts.

All texts are plain text, which `page.html` escapes. Charts are SVG elements, which are inserted unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias


INK_COLOR = -1  # the colour number that selects the text colour of the page; only for legends


@dataclass(frozen=True)
class Verdict:
    """The result of comparing a recommender with a reference, or the conclusion of a study.

    Args:
        text (`str`): The result in words.
        outcome (`str`, *optional*, defaults to `"open"`): `"better"`, `"worse"`, or `"open"` for any other
            result.
    """

    text: str
    outcome: Literal["better", "worse", "open"] = "open"


@dataclass(frozen=True)
class Verdicts:
    """Verdicts, each shown in a box of its own."""

    verdicts: Sequence[Verdict]
    kind: ClassVar[str] = "verdicts"


@dataclass(frozen=True)
class Cell:
    """A value of a table.

    Args:
        text (`str`): The value.
        small (`str`, *optional*): The interval of the value, or another remark in small print.
        is_best (`bool`, *optional*, defaults to `False`): Whether the value is the best of all recommenders.
    """

    text: str
    small: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        name (`str`): The first cell.
        cells (`Sequence[Cell]`): The other cells.
        is_own (`bool`, *optional*, defaults to `False`): Whether the row shows a recommender that the page is about,
            rather than a baseline.
    """

    name: str
    cells: Sequence[Cell]
    is_own: bool = False


@dataclass(frozen=True)
class Table:
    """A table with remarks (`notes`) below it. If `is_folded`, only its title is shown until the reader opens it."""

    headings: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    notes: Sequence[str] = ()
    is_folded: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Panel:
    """A chart with a title and a remark on how to read the chart. `svg` is inserted into the page as it is."""

    svg: str
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts side by side, with one legend that maps names to colours.

    Args:
        panels (`Sequence[Panel]`): The charts.
        legend (`Sequence[tuple[str, int]]`, *optional*): The names, each with a colour number. Numbers 0 to 9 select
            the CSS variables `--series-0` to `--series-9`, and higher numbers repeat these colours. `INK_COLOR`
            selects the text colour of the page.
        title (`str`, *optional*): The heading above the charts.
        is_wide (`bool`, *optional*, defaults to `False`): Whether each chart takes a line of its own.
    """

    panels: Sequence[Panel]
    legend: Sequence[tuple[str, int]] = ()
    title: str = ""
    is_wide: bool = False
    kind: ClassVar[str] = "charts"


@dataclass(frozen=True)
class Entry:
    """An item of a list. `remark` is shown after the title. If `is_hit`, the item is highlighted."""

    title: str
    remark: str = ""
    is_hit: bool = False


@dataclass(frozen=True)
class ItemList:
    """The list recommended to one user, with the newest items of the user's history (`history`).

    `missed` names the items that the user chose next, but that are not in the list.
    """

    name: str
    entries: Sequence[Entry]
    history: str = ""
    missed: str = ""


@dataclass(frozen=True)
class ItemLists:
    """The lists recommended to several users."""

    lists: Sequence[ItemList]
    kind: ClassVar[str] = "lists"


@dataclass(frozen=True)
class Facts:
    """Facts, each with a name and a value."""

    facts: Sequence[tuple[str, str]]
    title: str = ""
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Text:
    """Lines of a file, in a block that a reader can open and close."""

    title: str
    lines: Sequence[str]
    is_open: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Note:
    """A remark."""

    text: str
    kind: ClassVar[str] = "note"


Block: TypeAlias = Verdicts | Table | Charts | ItemLists | Facts | Text | Note


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        anchor (`str`): The id of the section in the page.
        title (`str`): The heading.
        says (`str`): A short text that tells a newcomer what to look at.
        blocks (`Sequence[Block]`): The parts of the section, in order.
    """

    anchor: str
    title: str
    says: str
    blocks: Sequence[Block]
