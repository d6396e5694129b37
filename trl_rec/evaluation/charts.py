"""Curves as an SVG file, which any browser and README shows: one panel a quantity, one line a run, drawn without a
library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

import numpy as np


Curves: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]  # from a run's name to its points (x, y)

COLORS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#777777",
)  # Paul Tol's, told apart by all eyes
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380, 260, 56, 14, 34, 40


def logged_curve(log_history: Sequence[Mapping[str, Any]], name: str, *, x: str = "step") -> list[tuple[float, float]]:
    """The points of a logged quantity, over the step or another logged quantity.

    Args:
        log_history: `trainer.state.log_history`, or the lines of a run's `eval.jsonl`.
        name: What is shown, such as `"rewards/ndcg"`.
        x: What it is shown over.
    """
    return [(float(entry[x]), float(entry[name])) for entry in log_history if name in entry and x in entry]


def line_charts(panels: Mapping[str, Curves], *, x_label: str = "step") -> str:
    """The text of an SVG with the panels side by side, and one legend below.

    Args:
        panels: From a panel's title to its lines. A run has the same colour in all panels; one without points is left
            out.
        x_label: What all horizontal axes show.
    """
    if not panels or not any(curve for curves in panels.values() for curve in curves.values()):
        raise ValueError("there is nothing to draw: no run has a point; log what is to be shown")
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colors = {name: COLORS[place % len(COLORS)] for place, name in enumerate(names)}
    parts = [
        f'<g transform="translate({place * WIDTH},0)">{_panel(title, curves, colors, x_label)}</g>'
        for place, (title, curves) in enumerate(panels.items())
    ]
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT + 30}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{background}{"".join(parts)}{_legend(colors)}</svg>\n'
    )


def _panel(title: str, curves: Curves, colors: Mapping[str, str], x_label: str) -> str:
    points = np.array([point for curve in curves.values() for point in curve], float).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    parts = [_text(WIDTH / 2, 18, title, weight="bold"), _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label)]
    if not len(points):
        return "".join(parts)
    (x_ticks, x_place), (y_ticks, y_place) = (
        _axis(points[:, 0], LEFT, WIDTH - RIGHT),
        _axis(points[:, 1], HEIGHT - BOTTOM, TOP),
    )
    for tick in y_ticks:
        parts.append(f'<path d="M{LEFT} {y_place(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y_place(tick) + 4, f"{tick:.4g}", anchor="end"))
    parts += [_text(x_place(tick), HEIGHT - BOTTOM + 18, f"{tick:.4g}") for tick in x_ticks]
    for name, curve in curves.items():
        drawn = " ".join(f"{x_place(x):.1f},{y_place(y):.1f}" for x, y in curve if np.isfinite([x, y]).all())
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colors[name]}" stroke-width="1.8"/>')
    return "".join(parts)


def _axis(values: np.ndarray, start: float, stop: float) -> tuple[np.ndarray, Any]:
    """Round numbers within the values' range, and where on the paper a value lies."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    step = 10 ** np.floor(np.log10((high - low) / 4))
    step *= min((1, 2, 5, 10), key=lambda factor: abs((high - low) / (step * factor) - 5))
    ticks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return ticks, lambda value: start + (value - low) / (high - low) * (stop - start)


def _legend(colors: Mapping[str, str]) -> str:
    parts, left = [], LEFT
    for name, color in colors.items():
        parts.append(f'<path d="M{left} {HEIGHT + 14}h22" stroke="{color}" stroke-width="3"/>')
        parts.append(_text(left + 28, HEIGHT + 18, name, anchor="start"))
        left += 48 + 7 * len(name)
    return "".join(parts)


def _text(x: float, y: float, text: str, *, anchor: str = "middle", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
