"""Formats results as text or Markdown: one row per recommender, one column per metric, and a legend below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trl_rec.evaluation.results import Evaluation
from trl_rec.printing import printable


# Maps each metric to its direction (1: higher is better, -1: lower is better, 0: neither) and its line in the legend.
MEANINGS = {
    "recall": (1, "share of a user's next items that the list contains"),
    "hit": (1, "share of users whose list contains at least one of their next items"),
    "ndcg": (1, "like recall, but a hit counts more near the top"),
    "mrr": (1, "1 / rank of the first hit"),
    "preference_accuracy": (
        1,
        "how often a held-out item that a user liked scores above one that the user disliked; chance is 0.5",
    ),
    "liked": (1, "like recall, but counts only next items that the user rated 4 or more"),
    "disliked": (-1, "like recall, but counts only next items that the user rated 2 or less"),
    "liked_users": (0, "number of users with a next item rated 4 or more"),
    "disliked_users": (0, "number of users with a next item rated 2 or less"),
    "preference_users": (0, "number of users with a next item rated 4 or more and another rated 2 or less"),
    "expected_recall": (1, "recall, averaged over all orders of the items that share a text"),
    "expected_ndcg": (1, "ndcg, averaged over all orders of the items that share a text"),
    "coverage": (1, "share of the catalogue that is recommended to at least one user"),
    "gini": (-1, "inequality of how often items are recommended, from 0 (all equally) to 1 (only one item)"),
    "popularity": (0, "mean number of interactions that a recommended item has in the training split"),
    "ild": (1, "how different the items of a list are from each other"),
    "div_ratio": (1, "number of distinct recommended items / number of places in all lists"),
    "or_ratio": (-1, "share of the recommendations that go to the three most recommended items"),
    "mgu": (
        -1,
        "|a group's share of the recommendations - its share of the histories|, averaged over the groups of items",
    ),
    "dgu": (
        -1,
        "largest minus smallest value of (a group's share of the recommendations - its share of the histories)",
    ),
    "invalid": (-1, "number of recommendations that are not in the catalogue"),
    "duplicates": (-1, "number of recommendations that repeat an item of the same list"),
    "reward": (1, "weighted sum of the rewards of a list"),
    "reward/mgu": (
        1,
        "minus |a group's share of the list - its share of the history|, averaged over the groups of items",
    ),
    "graded_ndcg": (1, "NDCG of the order of rated candidates, with the gain 2^rating - 1"),
    "tau": (1, "Kendall's tau with the order of the ratings: 1 is the same order, 0 is chance"),
    "consistency": (
        1,
        "Kendall's tau between the model's orders of a list when the prompt shows its candidates in different orders",
    ),
    "slot_bias": (
        0,
        "Kendall's tau between the order in the prompt and the model's order: 0 is no bias, above 0 means that the "
        "model favours the candidates that are shown first",
    ),
    "pruned": (-1, "share of a user's next items that are among the k best by exact scores, but not in the list"),
    "pruning_rate": (
        -1,
        "like pruned, but as a share of those next items that are among the k best by exact scores",
    ),
    "drawn_reward": (1, "reward of a list that the model draws, averaged over several draws"),
    "drawn_ndcg": (1, "NDCG of a list that the model draws, averaged over several draws"),
    "num_users": (0, "number of users that the metrics are computed over"),
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
    """Makes a table of results. The best value of each column is marked, as defined in [`best_of`].

    Args:
        results (`Mapping[str, Evaluation]`): Evaluation of each recommender by name, at least one.
        columns (`Sequence[str]`, *optional*): Metrics to show. Defaults to those of [`default_columns`].
        intervals (`str`, *optional*, defaults to `"half_width"`): How bootstrap intervals are shown. `"half_width"`
            shows half the width, such as "±0.0035". `"range"` shows both ends, such as "[0.0754, 0.0824]". `"none"`
            shows no intervals.
        markdown (`bool`, *optional*, defaults to `False`): Whether to return Markdown with the best values in bold,
            instead of aligned text in which the best values have a star.
        caption (`str`, *optional*): A line above the table, for example the dataset, the split and whether histories
            are excluded.
    """
    if not results:
        raise ValueError("there are no results to show; evaluate a baseline or a model first")
    if intervals not in ("half_width", "range", "none"):
        raise ValueError(f"unknown intervals {intervals!r}; choose half_width, range or none")

    columns = default_columns(results) if columns is None else list(columns)
    best = {column: best_value(results, column) for column in columns}
    rows = [["", *columns]]
    for name, evaluation in results.items():
        rows.append([name, *(_cell(evaluation, column, best[column], intervals, markdown) for column in columns)])

    # Join the caption, the table and the legend, separated by empty lines.
    head = [printable(caption), ""] if caption else []
    table = _markdown(rows) if markdown else aligned(rows)
    return "\n".join([*head, *table, "", *_legend(results, columns, intervals, markdown)])


def default_columns(results: Mapping[str, Evaluation]) -> list[str]:
    """Returns the metrics that are shown by default and that at least one recommender has.

    Let k be the largest cutoff at which a metric other than recall was computed. The metrics are `DEFAULT_NAMES` at k,
    recall at cutoffs above k, the reward, `preference_accuracy` with `liked` and `disliked` at k, and the error counts
    (`invalid` and `duplicates`) that are not 0.
    """
    known = {column for evaluation in results.values() for column in evaluation.metrics}

    # Find k. Recall is left out, because it may also have been computed at larger cutoffs.
    cutoffs = [column.split("@") for column in known if "@" in column]
    recalls = {int(k) for stem, k in cutoffs if stem == "recall"}
    others = {int(k) for stem, k in cutoffs if stem != "recall"}
    k = max(others or recalls, default=0)
    further = [f"recall@{cutoff}" for cutoff in sorted(recalls) if cutoff > k]
    recall, *names = (f"{name}@{k}" for name in DEFAULT_NAMES)
    wanted = [recall, *further, *names, "reward"]

    # Show `liked` and `disliked` only together with `preference_accuracy`, which exists if some users have both liked
    # and disliked items.
    if "preference_accuracy" in known:
        wanted += ["preference_accuracy", f"liked@{k}", f"disliked@{k}"]

    # Show an error count only if it is not 0 for at least one recommender.
    errors = [
        name
        for name in ("invalid", "duplicates")
        if any(evaluation.metrics.get(name, 0) for evaluation in results.values())
    ]
    return [column for column in wanted if column in known] + errors


def best_value(results: Mapping[str, Evaluation], column: str) -> float | None:
    """Returns the best value that the results have for a metric, as defined in [`best_of`]."""
    return best_of({one.metrics[column] for one in results.values() if column in one.metrics}, column)


def best_of(values: set[float], metric: str) -> float | None:
    """Returns the best of the distinct values of a metric. Returns None if there are fewer than two, or if neither
    higher nor lower values of the metric are better."""
    direction = direction_of(metric)
    if direction == 0 or len(values) < 2:
        return None
    return max(values) if direction > 0 else min(values)


def _cell(evaluation: Evaluation, column: str, best: float | None, intervals: str, markdown: bool) -> str:
    if column not in evaluation.metrics:
        return "-"

    # Write the value with its mark. In plain text, values without a star get a space, so that decimal points align.
    value = evaluation.metrics[column]
    text = number_text(value)
    if markdown:
        text = f"**{text}**" if value == best else text
    elif best is not None:
        text += "*" if value == best else " "

    if intervals == "none" or column not in evaluation.intervals:
        return text
    low, high = evaluation.intervals[column]
    if intervals == "half_width":
        return f"{text} ±{number_text((high - low) / 2)}"
    return f"{text} [{number_text(low)}, {number_text(high)}]"


def number_text(value: float) -> str:
    """Returns a metric as text. Floats get 4 decimals, or 1 decimal if the absolute value is 10 or more."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def direction_of(column: str) -> int:
    """Returns 1 if higher values of a metric are better, -1 if lower values are better, and 0 otherwise."""
    stem = stem_of(column)
    if stem.startswith("reward/"):  # every reward is higher for better lists, as stated in `score_lists`
        return 1
    return MEANINGS.get(stem, (0, ""))[0]


def stem_of(column: str) -> str:
    """Returns the name of a metric without its cutoff, such as `recall` for `recall@10`."""
    return column.split("@")[0]


def aligned(rows: list[list[str]]) -> list[str]:
    """Returns the lines of a text table. The first row is underlined; all columns but the first are right-aligned."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    lines.insert(1, "-" * len(lines[0]))
    return [line.rstrip() for line in lines]


def _markdown(rows: list[list[str]]) -> list[str]:
    escaped = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    # A colon on the right makes a column right-aligned.
    rule = ["---", *("---:" for _ in rows[0][1:])]
    return [f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]]]


def _legend(results: Mapping[str, Evaluation], columns: Sequence[str], intervals: str, markdown: bool) -> list[str]:
    # Write one line per metric, even if it is shown for several k.
    directions = {1: " (higher is better)", -1: " (lower is better)", 0: ""}
    stems = dict.fromkeys(stem_of(column) for column in columns if stem_of(column) in MEANINGS)
    lines = []
    for stem in stems:
        direction, meaning = MEANINGS[stem]
        lines.append(f"{stem}: {meaning}{directions[direction]}")

    has_interval = any(column in evaluation.intervals for evaluation in results.values() for column in columns)
    if has_interval and intervals != "none":
        shown = "±: half the width of" if intervals == "half_width" else "[low, high]:"
        lines.append(f"{shown} the 95 % bootstrap interval over users")

    lines.append("bold: best of its column" if markdown else "*: best of its column")
    return [f"- {line}" for line in lines] if markdown else lines
