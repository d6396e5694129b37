"""The first sections of a page: verdicts, the table of results, the plane of reward and accuracy, and slices."""

from __future__ import annotations

from collections.abc import Sequence

from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.report.blocks import Block, Cell, Charts, Facts, Panel, Row, Section, Table
from trl_rec.evaluation.report.drawing import Dot, interval_chart, plane_chart
from trl_rec.evaluation.report.material import Arm, Material
from trl_rec.evaluation.tables import MEANINGS, best_value, default_columns, number_text, stem_of
from trl_rec.evaluation.user_slices import slices


DIRECTIONS = {1: "higher is better", -1: "lower is better", 0: "neither high nor low is better"}


def results_section(material: Material) -> Section:
    """The metrics of all recommenders, and the primary metric as a chart."""
    results = {arm.name: arm.evaluation for arm in material.arms}
    columns = default_columns(results)
    if material.primary not in columns:
        columns = [material.primary, *columns]
    known = list(dict.fromkeys(name for evaluation in results.values() for name in evaluation.metrics))
    if len(columns) == 1:  # rated lists have measures of their own
        columns = [name for name in known if name != "num_users"]
    rest = [name for name in known if name not in columns and name != "num_users"]

    blocks: list[Block] = [
        _intervals(material),
        Table(
            ["", *columns],
            _rows(material, columns),
            notes=["±: half the width of the 95 % bootstrap interval over users. Shaded: best of its column."],
        ),
        Facts(_legend(columns)),
    ]
    if rest:
        blocks.append(Table(["", *rest], _rows(material, rest), "All other measures", is_folded=True))
    return Section(
        "results",
        "Results",
        f"Each recommender's measures on the same users; look at {material.primary} first, and at whether the "
        "intervals overlap.",
        blocks,
    )


def _intervals(material: Material) -> Charts:
    """The primary metric of each recommender as a chart."""
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
    """The meaning of each measure, once for all k."""
    stems = dict.fromkeys(stem_of(column) for column in columns)
    known = [stem for stem in stems if stem in MEANINGS]
    return [(stem, f"{MEANINGS[stem][1]} ({DIRECTIONS[MEANINGS[stem][0]]})") for stem in known]


def plane_section(material: Material) -> Section | None:
    """Reward and accuracy of each recommender as a point, where rewards were measured."""
    arms = [arm for arm in material.arms if "reward" in arm.metrics and material.primary in arm.metrics]
    if not arms or material.primary == "reward":
        return None
    dots = {arm.name: (dot_of(arm, material.primary), dot_of(arm, "reward")) for arm in arms}
    svg = plane_chart(dots, material.colors, x_label=f"accuracy ({material.primary})", y_label="reward of a list")
    return Section(
        "plane",
        "Reward and accuracy",
        "Points further right are more accurate, and points further up have more reward. A recommender that is "
        "above another and not to the left of it gained reward without losing accuracy.",
        [Charts([Panel(svg)], material.legend(arms), is_wide=True)],
    )


def slices_section(material: Material) -> Section | None:
    """The primary metric of each recommender for parts of the users."""
    masks = {name: mask for name, mask in slices(material.kept).items() if mask.any()}
    arms = [arm for arm in material.arms if material.primary in arm.evaluation.per_user]
    if not masks or not arms:
        return None

    rows = []
    for name, mask in masks.items():
        cells = [Cell(str(int(mask.sum())))]
        values = {arm.name: arm.evaluation.per_user[material.primary][mask] for arm in arms}
        means = {name: float(value.mean()) for name, value in values.items()}
        best = max(means.values()) if len(set(means.values())) > 1 else None
        for arm_name, value in values.items():
            low, high = bootstrap_interval(value)
            cells.append(
                Cell(number_text(means[arm_name]), f"±{number_text((high - low) / 2)}", means[arm_name] == best)
            )
        rows.append(Row(name, cells))
    return Section(
        "slices",
        "For whom it works",
        f"{material.primary} for parts of the users; look for a part in which a recommender that wins overall loses.",
        [Table(["", "users", *(arm.name for arm in arms)], rows, notes=["Parts of few users have wide intervals."])],
    )
