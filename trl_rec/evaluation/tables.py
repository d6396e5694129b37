"""Results as a table for people: a row a recommender, a column a metric, and below what each column means. Text or
Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trl_rec.evaluation.results import Evaluation


# What a column means, and its direction: 1 when more is better, -1 when less is, 0 when neither.
MEANINGS = {
    "recall": (1, "share of a user's next items that the list holds"),
    "hit": (1, "share of users whose list holds any of their next items"),
    "ndcg": (1, "like recall, but a hit counts more near the top"),
    "mrr": (1, "1 / rank of the first hit"),
    "coverage": (1, "share of the catalogue that is recommended to anybody"),
    "gini": (-1, "how unequally often items are recommended, from 0 (all alike) to 1 (one takes all)"),
    "popularity": (0, "how often the recommended items were chosen in training"),
    "ild": (1, "how different the items of a list are from each other"),
    "div_ratio": (1, "different items recommended / all recommendations"),
    "or_ratio": (-1, "share that the three most recommended items take"),
    "mgu": (-1, "how far groups get other shares than in users' histories, mean"),
    "dgu": (-1, "the same, from the group that loses most to the one that gains most"),
    "invalid": (-1, "recommendations that are not in the catalogue"),
    "duplicates": (-1, "recommendations that repeat one of the same list"),
    "reward": (1, "the weighted sum that was optimised, of a list"),
    "reward/mgu": (1, "minus how far a list's groups are from those of its user's own history"),
    "graded_ndcg": (1, "what the order of rated candidates is worth, gain 2^rating - 1, against the best order"),
    "tau": (1, "Kendall's tau with the order of the ratings: 1 the same, 0 chance"),
    "consistency": (1, "Kendall's tau between the orders given to the same candidates shown in different orders"),
    "slot_bias": (
        0,
        "Kendall's tau between the order shown and the order given: 0 none, above 0 what is read first wins",
    ),
    "num_users": (0, "users that the figures are over"),
}
DEFAULT_NAMES = ("recall", "ndcg", "coverage", "gini", "popularity", "ild", "mgu")


def metrics_table(
    results: Mapping[str, Evaluation],
    *,
    columns: Sequence[str] | None = None,
    intervals: str = "half_width",
    markdown: bool = False,
    caption: str | None = None,
) -> str:
    """A table of results; the best value of a column is marked where one direction is better.

    Args:
        results (`Mapping[str, Evaluation]`): Name of a recommender to what it reached, at least one.
        columns (`Sequence[str]`, *optional*): Metrics to show; by default some of each kind, at the largest k.
        intervals (`str`, *optional*, defaults to `"half_width"`): `"half_width"` shows half of an interval's width,
            "±0.0035"; `"range"` shows "[0.0754, 0.0824]"; `"none"` shows none.
        markdown (`bool`, *optional*, defaults to `False`): Markdown with bold best values, else aligned text with
            stars.
        caption (`str`, *optional*): A line above: data, split, whether history is excluded.
    """
    if not results:
        raise ValueError("there are no results to show; evaluate a baseline or a model first")
    if intervals not in ("half_width", "range", "none"):
        raise ValueError(f"unknown intervals {intervals!r}; choose half_width, range or none")
    columns = _default_columns(results) if columns is None else list(columns)
    best = {column: _best(results, column) for column in columns}
    rows = [["", *columns]]
    for name, evaluation in results.items():
        rows.append([name, *(_cell(evaluation, column, best[column], intervals, markdown) for column in columns)])
    table = _markdown(rows) if markdown else aligned(rows)
    head = [caption, ""] if caption else []
    return "\n".join([*head, *table, "", *_legend(results, columns, intervals, markdown)])


def _default_columns(results: Mapping[str, Evaluation]) -> list[str]:
    known = {column for evaluation in results.values() for column in evaluation.metrics}
    k = max((int(column.split("@")[1]) for column in known if "@" in column), default=0)
    faults = [name for name in ("invalid", "duplicates") if any(one.metrics.get(name, 0) for one in results.values())]
    wanted = [*(f"{name}@{k}" for name in DEFAULT_NAMES), "reward"]
    return [column for column in wanted if column in known] + faults


def _best(results: Mapping[str, Evaluation], column: str) -> float | None:
    values = [evaluation.metrics[column] for evaluation in results.values() if column in evaluation.metrics]
    direction = MEANINGS.get(_stem(column), (0, ""))[0]
    if direction == 0 or len(set(values)) < 2:
        return None
    return max(values) if direction > 0 else min(values)


def _cell(evaluation: Evaluation, column: str, best: float | None, intervals: str, markdown: bool) -> str:
    if column not in evaluation.metrics:
        return "-"
    value, interval = evaluation.metrics[column], ""
    text = _number(value)
    if markdown:
        text = f"**{text}**" if value == best else text
    elif best is not None:
        text += "*" if value == best else " "
    if intervals != "none" and column in evaluation.intervals:
        low, high = evaluation.intervals[column]
        interval = (
            f" ±{_number((high - low) / 2)}" if intervals == "half_width" else f" [{_number(low)}, {_number(high)}]"
        )
    return text + interval


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def _stem(column: str) -> str:
    return column.split("@")[0]


def aligned(rows: list[list[str]]) -> list[str]:
    """The lines of a table, its first row underlined, its first column on the left and the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return [line.rstrip() for line in lines]


def _markdown(rows: list[list[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", *("---:" for _ in rows[0][1:])]
    return [f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]]]


def _legend(results: Mapping[str, Evaluation], columns: Sequence[str], intervals: str, markdown: bool) -> list[str]:
    stems = dict.fromkeys(_stem(column) for column in columns if _stem(column) in MEANINGS)
    directions = {1: " (higher is better)", -1: " (lower is better)", 0: ""}
    lines = [f"{stem}: {MEANINGS[stem][1]}{directions[MEANINGS[stem][0]]}" for stem in stems]
    if (
        any(column in evaluation.intervals for evaluation in results.values() for column in columns)
        and intervals != "none"
    ):
        shown = "±: half the width of" if intervals == "half_width" else "[low, high]:"
        lines.append(f"{shown} the 95 % bootstrap interval over users")
    lines.append("bold: best of its column" if markdown else "*: best of its column")
    return [f"- {line}" for line in lines] if markdown else lines
