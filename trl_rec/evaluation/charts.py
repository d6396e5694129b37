"""Draws line charts as SVG text, without a plotting library: one panel per quantity, one line per run.

SVG files are displayed by browsers and in READMEs on GitHub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

import numpy as np

from trl_rec.printing import printable


Curves: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]  # maps the name of a run to its points (x, y)

# Paul Tol's bright colour scheme, with a darker grey. Colour-blind people can distinguish these colours.
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")

# Size of a panel, and the margins around its plot, in pixels.
WIDTH = 380
HEIGHT = 260
LEFT = 56
RIGHT = 14
TOP = 34
BOTTOM = 40


def logged_curve(log_history: Sequence[Mapping[str, Any]], name: str, *, x: str = "step") -> list[tuple[float, float]]:
    """Returns the points `(x, y)` of a logged quantity as a function of the step or of another logged quantity.

    Args:
        log_history: `trainer.state.log_history`, or the lines of a run's `eval.jsonl`.
        name: The quantity on the vertical axis, for example `"rewards/ndcg"`.
        x (*optional*, defaults to `"step"`): The quantity on the horizontal axis.
    """
    return [(float(entry[x]), float(entry[name])) for entry in log_history if name in entry and x in entry]


def line_charts(panels: Mapping[str, Curves], *, x_label: str = "step") -> str:
    """Returns the text of an SVG file that shows the panels side by side, with one legend below.

    Args:
        panels: Maps the title of each panel to its curves. A run has the same colour in all panels. Points that are
            not finite are left out.
        x_label (*optional*, defaults to `"step"`): Label of every horizontal axis.
    """
    if not panels or not any(curve for curves in panels.values() for curve in curves.values()):
        raise ValueError("there is nothing to draw, because no run contains a value; log the quantity first")

    # Assign one colour per run, the same in every panel.
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}
    parts = [
        f'<g transform="translate({number * WIDTH},0)">{_panel(title, curves, colors, x_label)}</g>'
        for number, (title, curves) in enumerate(panels.items())
    ]

    # The legend takes 30 pixels below the panels.
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT + 30}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{background}{"".join(parts)}{_legend(colors)}</svg>\n'
    )


def _panel(title: str, curves: Curves, colors: Mapping[str, str], x_label: str) -> str:
    points = np.array([point for curve in curves.values() for point in curve], float).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]

    # Write the title and the axis label. An empty panel shows nothing else.
    parts = [_text(WIDTH / 2, 18, title, weight="bold"), _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label)]
    if not len(points):
        return "".join(parts)

    # Draw both axes. In SVG, y grows downwards, so the vertical axis starts at the bottom of the plot.
    x_ticks, to_x = _axis(points[:, 0], LEFT, WIDTH - RIGHT)
    y_ticks, to_y = _axis(points[:, 1], HEIGHT - BOTTOM, TOP)
    for tick in y_ticks:
        parts.append(f'<path d="M{LEFT} {to_y(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, to_y(tick) + 4, f"{tick:.4g}", anchor="end"))
    parts += [_text(to_x(tick), HEIGHT - BOTTOM + 18, f"{tick:.4g}") for tick in x_ticks]

    # Draw the curves on top of the grid.
    for name, curve in curves.items():
        drawn = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in curve if np.isfinite([x, y]).all())
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colors[name]}" stroke-width="1.8"/>')
    return "".join(parts)


def _axis(values: np.ndarray, start: float, stop: float) -> tuple[np.ndarray, Callable[[float], float]]:
    """Returns round tick values within the range of `values`, and a function that maps a value to its pixel."""
    low = float(values.min())
    high = float(values.max())
    if high - low < 1e-12 * max(1.0, abs(high)):  # equal values have no range to divide by
        low -= 0.5
        high += 0.5

    # The step is 1, 2, 5 or 10 times a power of ten, chosen so that the range has about five steps.
    step = 10 ** np.floor(np.log10((high - low) / 4))
    step *= min((1, 2, 5, 10), key=lambda factor: abs((high - low) / (step * factor) - 5))
    ticks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return ticks, lambda value: start + (value - low) / (high - low) * (stop - start)


def _legend(colors: Mapping[str, str]) -> str:
    parts = []
    left = LEFT
    for name, color in colors.items():
        parts.append(f'<path d="M{left} {HEIGHT + 14}h22" stroke="{color}" stroke-width="3"/>')
        parts.append(_text(left + 28, HEIGHT + 18, name, anchor="start"))
        left += 48 + 7 * len(name)  # about 7 pixels per character
    return "".join(parts)


def _text(x: float, y: float, text: str, *, anchor: str = "middle", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(printable(text))}</text>'
    )
