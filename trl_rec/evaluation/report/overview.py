"""Makes the report's sections on metrics: all metrics, reward and accuracy, slices of users, and beam search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trl_rec.evaluation.comparison.user_slices import slices
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.report.blocks import Block, Cell, Charts, Facts, Note, Panel, Row, Section, Table
from trl_rec.evaluation.report.drawing import Dot, interval_chart, plane_chart
from trl_rec.evaluation.report.material import Arm, Material
from trl_rec.evaluation.tables import MEANINGS, best_of, best_value, default_columns, number_text, stem_of


# Metrics in the table of diversity, popularity and fairness.
OF_LISTS = ("coverage", "gini", "popularity", "ild", "div_ratio", "or_ratio", "mgu", "dgu", "invalid", "duplicates")
DIRECTIONS = {1: "higher is better", -1: "lower is better", 0: "neither high nor low values are better"}


def results_section(material: Material) -> Section:
    """Returns the section with the metrics of all recommenders, and a chart of the primary metric."""
    results = {arm.name: arm.evaluation for arm in material.arms}
    columns = default_columns(results)
    if material.primary not in columns:
        columns = [material.primary, *columns]
    known = list(dict.fromkeys(name for evaluation in results.values() for name in evaluation.metrics))
    if len(columns) == 1:
        # Recommenders that ordered rated candidates have none of the default metrics, so show all of their metrics.
        columns = [name for name in known if name != "num_users"]
    rest = [name for name in known if name not in columns and name != "num_users"]

    of_lists = [column for column in columns if stem_of(column) in OF_LISTS]
    of_users = [column for column in columns if column not in of_lists]
    blocks: list[Block] = [_intervals(material)]
    for part, title in ((of_users, "Accuracy"), (of_lists, "Diversity, popularity and fairness")):
        if part:
            blocks += [Table(["", *part], _rows(material, part), title), Facts(_legend(part))]
    seeds = (
        " With several seeds, the intervals also account for the variation between seeds."
        if any(len(arm.seeds) > 1 for arm in material.own)
        else ""
    )
    blocks.append(
        Note(
            f"±: half the width of the 95 % interval, from a bootstrap over users.{seeds} Shaded: the best value of "
            "the column."
        )
    )
    if rest:
        blocks.append(Table(["", *rest], _rows(material, rest), "All other metrics", is_folded=True))
    return Section(
        "results",
        "Results",
        f"The metrics of each recommender on the same users. Look at {material.primary} first, and check whether "
        "the intervals overlap.",
        blocks,
    )


def _intervals(material: Material) -> Charts:
    """Returns a chart of the primary metric of each recommender."""
    dots = {arm.name: dot_of(arm, material.primary) for arm in material.arms if material.primary in arm.metrics}
    panel = Panel(interval_chart(dots, material.colors, x_label=material.primary))
    return Charts([panel], is_wide=True)


def dot_of(arm: Arm, metric: str) -> Dot:
    """Returns a metric of a recommender with its interval."""
    value = arm.metrics[metric]
    low, high = arm.evaluation.intervals.get(metric, (value, value))
    return Dot(value, low, high)


def _rows(material: Material, columns: Sequence[str]) -> list[Row]:
    results = {arm.name: arm.evaluation for arm in material.arms}
    best = {column: best_value(results, column) for column in columns}
    rows = []
    for arm in material.arms:
        cells = []
        for column in columns:
            if column not in arm.metrics:
                cells.append(Cell("-"))
                continue
            dot = dot_of(arm, column)
            width = f"±{number_text((dot.high - dot.low) / 2)}" if column in arm.evaluation.intervals else ""
            cells.append(Cell(number_text(dot.value), width, dot.value == best[column]))
        rows.append(Row(arm.name, cells, arm.is_own))
    return rows


def _legend(columns: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the name and the meaning of each metric. Metrics that differ only in the cutoff k share one entry."""
    stems = dict.fromkeys(stem_of(column) for column in columns)
    known = [stem for stem in stems if stem in MEANINGS]
    return [(stem, f"{MEANINGS[stem][1]} ({DIRECTIONS[MEANINGS[stem][0]]})") for stem in known]


def plane_section(material: Material) -> Section | None:
    """Returns the section that shows each recommender as a point whose coordinates are accuracy and reward. Returns
    None if no rewards were measured, or if the reward is the primary metric."""
    arms = [arm for arm in material.arms if "reward" in arm.metrics and material.primary in arm.metrics]
    if not arms or material.primary == "reward":
        return None
    dots = {arm.name: (dot_of(arm, material.primary), dot_of(arm, "reward")) for arm in arms}
    svg = plane_chart(dots, material.colors, x_label=f"accuracy ({material.primary})", y_label="reward of a list")
    return Section(
        "plane",
        "Reward and accuracy",
        "Each point is a recommender. A point further right is more accurate, and a point further up has a higher "
        "reward. A recommender that is above another one, and not to the left of it, has a higher reward without "
        "being less accurate.",
        [Charts([Panel(svg)], material.legend(arms), is_wide=True)],
    )


def slices_section(material: Material) -> Section | None:
    """Returns the section with the primary metric of each recommender for slices of the users."""
    masks = {name: mask for name, mask in slices(material.kept).items() if mask.any()}
    arms = [arm for arm in material.arms if material.primary in arm.evaluation.per_user]
    if not masks or not arms:
        return None

    rows = [Row(name, _slice_cells(material, arms, mask)) for name, mask in masks.items()]
    return Section(
        "slices",
        "Slices of users",
        f"{material.primary} for slices of the users. The recommender that is best overall may not be best for every "
        "slice.",
        [Table(["", "users", *(arm.name for arm in arms)], rows, notes=["Small slices have wide intervals."])],
    )


def _slice_cells(material: Material, arms: Sequence[Arm], mask: np.ndarray) -> list[Cell]:
    """Returns the table row of a slice: the number of its users, and the primary metric of each recommender.

    The metric is averaged over the users who have a value.
    """
    cells = [Cell(f"{mask.sum():,}")]
    values = [arm.evaluation.per_user[material.primary][mask] for arm in arms]
    measured = [value[np.isfinite(value)] for value in values]
    means = [float(value.mean()) if len(value) else None for value in measured]
    known = {mean for mean in means if mean is not None}
    best = best_of(known, material.primary)
    for value, mean in zip(measured, means, strict=True):
        if mean is None:
            cells.append(Cell("-"))
        else:
            low, high = bootstrap_interval(value)
            cells.append(Cell(number_text(mean), f"±{number_text((high - low) / 2)}", mean == best))
    return cells


def beam_section(material: Material) -> Section | None:
    """Returns the section that compares beam search with scoring every item, or None if the difference (the
    beam gap) was not measured."""
    rows = []
    for arm in material.own:
        gap = arm.runs[0].beam_gaps.get(arm.rows[0])
        if gap is None:
            continue
        for metric, found in gap.gaps.items():
            cells = [
                Cell(str(gap.num_beams)),
                Cell(number_text(gap.beam[metric])),
                Cell(number_text(gap.exhaustive[metric])),
                Cell(f"{found.difference:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}"),
                Cell("-" if gap.pruning_rate is None else f"{gap.pruning_rate:.1%}"),
                Cell(f"{gap.num_users:,}"),
            ]
            rows.append(Row(f"{arm.name}, {metric}", cells))
    if not rows:
        return None
    headings = ["", "beams", "beam search", "every item scored", "difference", "targets pruned", "users"]
    note = (
        "Difference: the metric with every item scored minus the metric of beam search. Targets pruned: the share of "
        "reachable targets that beam search loses. With B beams, a target is reachable if its exact score is among "
        "the B highest."
    )
    return Section(
        "beam",
        "What beam search loses",
        "Each row compares two rankings by the same model: one by beam search, and one by the scores of every item. "
        "If the difference is far above 0, use more beams.",
        [Table(headings, rows, notes=[note])],
    )
