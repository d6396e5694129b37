"""Makes those sections of a report (an HTML page) that show which items are recommended: the shares of item groups,
the use of the codes of semantic IDs, and lists of titles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trl_rec.data.dataset import split_rows, split_users
from trl_rec.evaluation import metrics
from trl_rec.evaluation.report.blocks import (
    INK_COLOR,
    Block,
    Cell,
    Charts,
    Entry,
    ItemList,
    ItemLists,
    Note,
    Panel,
    Row,
    Section,
    Table,
)
from trl_rec.evaluation.report.drawing import line_chart, share_chart
from trl_rec.evaluation.report.material import Material
from trl_rec.items import ItemCatalog


ITEMS_COLOR = 6
# Maximum number of groups shown: those with the largest shares in the histories or, without a dataset, in the
# recommendations.
NUM_GROUPS = 20
NUM_LISTS = 10
NUM_RECENT = 3  # history items above each list
NEEDS_DATASET = "Histories are not shown, because the page was made without the dataset; give --dataset."


def groups_section(material: Material) -> Section | None:
    """Returns the section that compares the share of each group of items in recommendations with the group's share in
    the users' histories."""
    catalog, dataset = material.catalog, material.dataset
    if catalog is None or catalog.group_column is None or not material.ranked or material.is_rated:
        return None
    names, item_shares = catalog.group_shares()
    arms = [arm for arm in material.ranked if arm.is_own or arm is material.strongest_baseline]
    shares = {arm.name: metrics.group_share(material.ranked[arm], item_shares) for arm in arms}
    legend = material.legend(arms)
    blocks: list[Block] = []
    history = None
    if dataset is None:
        order = np.argsort(-np.mean(list(shares.values()), 0), kind="stable")[:NUM_GROUPS]
        blocks.append(Note(NEEDS_DATASET))
    else:
        history = metrics.group_share(split_rows(material.split, "history").values, item_shares)
        order = np.argsort(-history, kind="stable")[:NUM_GROUPS]
        legend = [("histories", INK_COLOR), *legend]

    # Show the largest groups, from the largest to the smallest.
    rows = [names[group] for group in order]
    svg = share_chart(
        {name: share[order] for name, share in shares.items()},
        rows,
        material.colors,
        x_label=f"share by {catalog.group_column}",
        reference=None if history is None else history[order],
    )
    if len(rows) < len(names):
        blocks.append(Note(f"Only the {len(rows)} largest of {len(names)} groups are shown."))
    text = "A fair recommender shows each group as often as users chose the group."
    if history is not None:
        text += (
            " The upright bars show each group's share in the histories. The marks of a fair recommender lie on these "
            "bars."
        )
    return Section("groups", "Share per group", text, [Charts([Panel(svg)], legend, is_wide=True), *blocks])


def codes_section(material: Material) -> Section | None:
    """Returns the section that shows how evenly the codes of semantic IDs are used, by items and in
    recommendations."""
    arms = [arm for arm in material.own if arm in material.ranked and _has_ids(arm.runs[0].catalog)]
    if not arms:
        return None

    # Show only the recommenders whose items have the same IDs as those of the first recommender. Different IDs consist
    # of different codes, so they cannot be compared in one chart.
    catalog = arms[0].runs[0].catalog
    assert catalog is not None and catalog.semantic_ids is not None
    arms = [arm for arm in arms if arm.runs[0].catalog.surfaces == catalog.surfaces]  # type: ignore[union-attr]
    legend = [("items", ITEMS_COLOR), *material.legend(arms)]
    rows: list[Row] = []
    panels = []
    for level in range(int(catalog.semantic_ids.lengths.max())):
        title = f"level {level + 1}"
        counts = _code_counts(catalog, level, [material.ranked[arm] for arm in arms])
        # Sort the shares of each line in descending order, so that less equal use of the codes gives a steeper line.
        shares = [np.sort(count)[::-1] / max(count.sum(), 1) for count in counts]
        rows += [_code_row(f"{title}, {name}", share) for (name, _), share in zip(legend, shares, strict=True)]
        if len(counts[0]) > 1:
            curves = [
                (list(enumerate(share.tolist(), 1)), color) for (_, color), share in zip(legend, shares, strict=True)
            ]
            panels.append(
                Panel(line_chart(curves, label=title, x_label="code, sorted by share"), f"{title}: share of each code")
            )
    headings = ["", "codes used", "effective codes", "largest share"]
    note = (
        "Effective codes: the exponential of the entropy of the shares, which equals the number of codes if all codes "
        "are used equally."
    )
    return Section(
        "codes",
        "Use of codes",
        "A semantic ID is a sequence of codes, one per level. A horizontal line means that all codes of the level are "
        "used equally. A recommender whose line is steeper than the line of the items concentrates on few codes.",
        [Charts(panels, legend), Table(headings, rows, notes=[note])],
    )


def _has_ids(catalog: ItemCatalog | None) -> bool:
    """Returns whether the items of a catalogue are written as semantic IDs."""
    return catalog is not None and catalog.surface == "semantic_id"


def _code_counts(catalog: ItemCatalog, level: int, rankings: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Counts how many items have each code of a level, and how often each ranking recommends each code."""
    codes = _codes(catalog, level)
    num_codes = int(codes.max()) + 1
    parts = [codes, *(codes[items[items >= 0]] for items in rankings)]
    return [np.bincount(part[part >= 0], minlength=num_codes) for part in parts]


def _code_row(name: str, share: np.ndarray) -> Row:
    """Returns a table row that shows how many codes are used, and how evenly."""
    used = share[share > 0]
    effective = float(np.exp(-(used * np.log(used)).sum()))
    cells = [Cell(f"{len(used)} of {len(share)}"), Cell(f"{effective:.1f}"), Cell(f"{share.max():.1%}")]
    return Row(name, cells)


def _codes(catalog: ItemCatalog, level: int) -> np.ndarray:
    """Returns each item's code at a level, as an index into the distinct tokens of that level, `(num_items,)`.

    The code is -1 if the semantic ID of the item has no token at this level.
    """
    assert catalog.semantic_ids is not None
    ids = catalog.semantic_ids
    has_level = ids.lengths > level
    tokens = ids.values[ids.offsets[:-1][has_level] + level].astype(str)
    codes = np.full(len(catalog), -1)
    codes[has_level] = np.unique(tokens, return_inverse=True)[1]
    return codes


def lists_section(material: Material) -> Section | None:
    """Returns the section that shows the lists of one recommender for the first evaluated rows.

    This is the recommender with the best primary metric, not counting baselines. If the page has only baselines, it is
    the strongest of them.
    """
    arm = material.best_own or material.strongest_baseline
    catalog = material.catalog
    if arm is None or arm not in material.ranked or catalog is None:
        return None

    rows = material.kept.users["row"].tolist()
    make = _rated_list if material.is_rated else _list
    lists = [
        make(material, catalog, number, row, items[items >= 0].tolist())
        for number, (row, items) in enumerate(zip(rows[:NUM_LISTS], material.ranked[arm], strict=False))
    ]
    blocks: list[Block] = [ItemLists(lists)]
    if material.dataset is None:
        blocks.append(Note(NEEDS_DATASET))
    what = (
        f"How {arm.name} orders the rated items of the first {len(lists)} users: high ratings belong at the top."
        if material.is_rated
        else f"What {arm.name} recommends to the first {len(lists)} users. Check whether the titles make sense after "
        "the history."
    )
    return Section("lists", "Ten lists" if len(lists) == NUM_LISTS else "Lists", what, blocks)


def _list(material: Material, catalog: ItemCatalog, number: int, row: int, items: list[int]) -> ItemList:
    """Returns the list of one user. With a dataset, adds the user's history, and marks the items that the
    user chose next."""
    titles = catalog.titles
    if material.dataset is None:
        return ItemList(f"row {row}", [Entry(titles[item]) for item in items])
    chosen = split_rows(material.split, "targets")[number].tolist()
    return ItemList(
        _name(material, number, row),
        [Entry(titles[item], "chosen next" if item in chosen else "", item in chosen) for item in items],
        history=_history(material, catalog, number),
        missed=", ".join(titles[item] for item in chosen if item not in items),
    )


def _rated_list(material: Material, catalog: ItemCatalog, number: int, row: int, items: list[int]) -> ItemList:
    """Returns the order of one user's rated items. With a dataset, adds the user's history and ratings."""
    titles = catalog.titles
    if material.dataset is None:
        return ItemList(f"row {row}", [Entry(titles[item]) for item in items])

    # If a user rated an item several times, the first rating counts.
    targets = split_rows(material.split, "targets")[number].tolist()
    ratings = split_rows(material.split, "target_ratings")[number].tolist()
    rated = dict(zip(reversed(targets), reversed(ratings), strict=True))
    return ItemList(
        _name(material, number, row),
        [Entry(titles[item], f"rated {rated[item]:g}" if item in rated else "") for item in items],
        history=_history(material, catalog, number),
    )


def _name(material: Material, number: int, row: int) -> str:
    """Returns the heading of a list: the row number or, with a dataset and `shows_users`, the user id."""
    if not material.shows_users or material.dataset is None:
        return f"row {row}"
    user = int(split_users(material.split)[number])
    return f"user {material.dataset.users['user_id'][user].as_py()}"


def _history(material: Material, catalog: ItemCatalog, number: int) -> str:
    """Returns the titles of the newest items of the history, newest first."""
    newest = split_rows(material.split, "history")[number][::-1][:NUM_RECENT]
    return " | ".join(catalog.titles[item] for item in newest)
