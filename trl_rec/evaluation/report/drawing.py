"""Draws the charts of a report with matplotlib, as SVG elements that can be placed in an HTML page.

The elements contain no scripts and no links to other files. They contain no dates and no random ids, so the same
values always give the same SVG. The colours are CSS variables of the page (`--ink`, `--rule`, `--series-0`, ...), so a
chart is light or dark like the page. Labels are text rather than shapes. Legends are not part of the charts but of the
page, where a long legend can be wrapped on a narrow screen.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias
from xml.etree import ElementTree

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trl_rec.printing import printable


Points: TypeAlias = Sequence[tuple[float, float]]  # (x, y)
Curve: TypeAlias = tuple[Points, int]  # points and their colour number, which also sets the marker and the dashes

NUM_COLORS = 10  # the page defines --series-0 to --series-9
# Placeholders that matplotlib accepts as colours. `_with_variables` replaces them with CSS variables.
INK = "#abc0f0"
RULE = "#abc0f1"
SERIES = [f"#abc1{number:02x}" for number in range(NUM_COLORS)]
MARKERS = "osD^vPX*<>"
DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2))]

ROUND = [1, 2, 2.5, 5, 10]  # the distance between two ticks is one of these numbers times a power of ten

WIDTH = 3.0  # size of a panel (one chart) in inches, small enough for a phone
HEIGHT = 2.1
WIDE = 4.6  # width of a panel that has no other panel beside it
LONGEST_LABEL = 24  # maximum number of characters of a name at an axis; longer names are cut

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trl-rec",
    "text.parse_math": False,  # a label may contain $, which would otherwise start a formula
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


class Dot(NamedTuple):
    """A value with its interval, or without one.

    Args:
        value (`float`): The value.
        low (`float`): Lower end of the interval. Equal to `value` if there is no interval.
        high (`float`): Upper end of the interval. Equal to `value` if there is no interval.
    """

    value: float
    low: float
    high: float


def line_chart(curves: Sequence[Curve], *, label: str, x_label: str, marks_only: bool = False) -> str:
    """Draws several curves. Points that are not finite are left out.

    Args:
        curves: The curves.
        label: Description of the chart, for screen readers.
        x_label: Label of the horizontal axis.
        marks_only: Whether to draw the points without lines between them.
    """
    lowest = np.inf
    with _panel(label=label) as panel:
        for points, number in curves:
            values = np.array(points, float).reshape(-1, 2)
            values = values[np.isfinite(values).all(1)]
            # If there are few points, markers show where they are.
            marker = MARKERS[number % len(MARKERS)] if marks_only or len(values) < 12 else ""
            dash = "none" if marks_only else DASHES[number // NUM_COLORS % len(DASHES)]
            panel.axes.plot(*values.T, color=SERIES[number % NUM_COLORS], marker=marker, linestyle=dash)
            lowest = min(lowest, values[:, 1].min(initial=np.inf))
        if lowest >= 0:
            # No value is negative, so remove most of the space below 0. The rest keeps a curve at 0 visible.
            bottom, top = panel.axes.get_ylim()
            panel.axes.set_ylim(bottom=max(bottom, -0.04 * top))
        panel.axes.set_xlabel(x_label)
        panel.axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
        panel.axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    return panel.svg


def interval_chart(dots: Mapping[str, Dot], colors: Mapping[str, int], *, x_label: str) -> str:
    """Draws one row per recommender, from top to bottom: a dot at the value and a line over its interval."""
    with _panel(label=x_label, width=WIDE, height=0.55 + 0.24 * len(dots)) as panel:
        for row, (name, dot) in enumerate(dots.items()):
            color = SERIES[colors[name] % NUM_COLORS]
            marker = MARKERS[colors[name] % len(MARKERS)]
            panel.axes.plot([dot.low, dot.high], [row, row], color=color, linewidth=2.2)
            panel.axes.plot([dot.value], [row], color=color, marker=marker, markersize=6)
        _name_rows(panel.axes, list(dots))
        panel.axes.set_xlabel(x_label)
    return panel.svg


def plane_chart(dots: Mapping[str, tuple[Dot, Dot]], colors: Mapping[str, int], *, x_label: str, y_label: str) -> str:
    """Draws one point per recommender in the plane of two measures, with an interval in both directions."""
    with _panel(label=f"{y_label} over {x_label}", width=WIDE, height=3.2) as panel:
        for name, (x, y) in dots.items():
            color = SERIES[colors[name] % NUM_COLORS]
            marker = MARKERS[colors[name] % len(MARKERS)]
            panel.axes.plot([x.low, x.high], [y.value, y.value], color=color, linewidth=1)
            panel.axes.plot([x.value, x.value], [y.low, y.high], color=color, linewidth=1)
            panel.axes.plot([x.value], [y.value], color=color, marker=marker, markersize=7)
        panel.axes.set_xlabel(x_label)
        panel.axes.set_ylabel(y_label)
    return panel.svg


def share_chart(
    shares: Mapping[str, np.ndarray],
    rows: Sequence[str],
    colors: Mapping[str, int],
    *,
    x_label: str,
    reference: np.ndarray | None = None,
) -> str:
    """Draws one row per group of items, with one mark per recommender and a line from the lowest to the highest share.

    Args:
        shares: For each recommender, the share of each group in its recommendations, `(num_rows,)`.
        rows: The names of the groups, from top to bottom.
        colors: The colour number of each recommender.
        x_label: Label of the horizontal axis.
        reference: Shares to compare the marks with, `(num_rows,)`, drawn as upright bars.
    """
    with _panel(label=x_label, width=WIDE, height=0.6 + 0.24 * len(rows)) as panel:
        numbers = np.arange(len(rows))
        values = np.stack([*shares.values(), *([] if reference is None else [reference])])  # (num_names, num_rows)
        for row in range(len(rows)):
            panel.axes.plot([values[:, row].min(), values[:, row].max()], [row, row], color=RULE, linewidth=2)
        for name, value in shares.items():
            number = colors[name]
            color = SERIES[number % NUM_COLORS]
            panel.axes.plot(value, numbers, MARKERS[number % len(MARKERS)], color=color, markersize=6)
        if reference is not None:
            panel.axes.plot(reference, numbers, "|", color=INK, markersize=13, markeredgewidth=2.4)
        _name_rows(panel.axes, list(rows))
        panel.axes.set_xlim(left=0)
        panel.axes.set_xlabel(x_label)
    return panel.svg


def _name_rows(axes: Axes, names: list[str]) -> None:
    """Writes the names at the left of the rows 0, 1, ..., from top to bottom."""
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


class _Panel:
    """Axes to draw on, and the SVG element, which is empty until [`_panel`] has drawn it."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.svg = ""


@contextmanager
def _panel(*, label: str, width: float = WIDTH, height: float = HEIGHT) -> Iterator[_Panel]:
    """Yields an empty panel. When the `with` block ends, the attribute `svg` of the panel is set to the drawing.

    Args:
        label: The text that a screen reader reads out.
        width: Width in inches.
        height: Height in inches.
    """
    # Reset matplotlib to its defaults, so that the user's own settings have no effect. Ignore its warnings about
    # characters that its font lacks, because the browser draws the text with other fonts.
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()
        matplotlib.style.use(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        panel = _Panel(figure.add_subplot())
        yield panel

        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    panel.svg = _inline(file.getvalue(), printable(label))


def _inline(svg: str, label: str) -> str:
    """Converts an SVG file to an element for HTML, without namespaces, and with ids that no other chart uses."""
    root = ElementTree.fromstring(svg)
    prefix = f"c{hashlib.sha256((label + svg).encode()).hexdigest()[:10]}-"
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))

    # 1. Remove the elements that only an SVG file needs, and line breaks between elements.
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style", "title"):
                parent.remove(child)
            child.tail = None
        parent.text = parent.text if _local(parent.tag) == "text" else None

    # 2. Rename tags and attributes.
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(_renamed(attributes, used, prefix))

    # 3. Never show the chart wider than it was drawn. On a narrower page, it shrinks and keeps its proportions.
    width = float(root.attrib["viewBox"].split()[2]) / 72  # inches
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update(role="img", style=f"max-width: {width:.2f}in", **{"aria-label": label})
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _renamed(attributes: dict[str, str], used: set[str], prefix: str) -> dict[str, str]:
    """Returns attributes with the prefix added to all ids, without unused ids, and with CSS variables as colours."""
    renamed = {}
    for name, value in attributes.items():
        if name == "id":
            if value in used:
                renamed[name] = f"{prefix}{value}"
        elif name == "href" or "url(#" in value:
            renamed[name] = value.replace("#", f"#{prefix}", 1)
        else:
            renamed[name] = _with_variables(value) if name == "style" else " ".join(value.split())
    return renamed


def _local(name: str) -> str:
    """Returns a tag or attribute without its namespace."""
    return name.rpartition("}")[2]


def _with_variables(style: str) -> str:
    """Replaces the placeholder colours with CSS variables. Removes the names of fonts, so that the page's font is
    used."""
    style = style.replace(INK, "var(--ink)").replace(RULE, "var(--rule)")
    style = re.sub(r"#abc1([0-9a-f]{2})", lambda found: f"var(--series-{int(found[1], 16)})", style)
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    return re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", style)
