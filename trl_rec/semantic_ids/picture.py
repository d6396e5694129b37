"""Draws an SVG bar chart of how many items use each code of the semantic IDs.

The chart has one band per level. The bars of a band are in descending order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


# Sizes in pixels
WIDTH = 768
HEIGHT = 110  # height of a band
GAP = 34  # space above a band, for its title
LEFT = 10

COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")  # from Paul Tol's colour-blind safe palette


def code_use_picture(card: Mapping[str, Any]) -> str:
    """Returns the text of an SVG file that shows how many items use each code.

    The dashed line in a band marks the height that all bars would have if every code had the same number of items.

    Args:
        card (`Mapping`): The card returned by [`read_ids_card`].
    """
    bands = [_band(number, level, card["num_items"]) for number, level in enumerate(card["levels"])]
    height = len(bands) * (HEIGHT + GAP) + GAP // 2
    size = f'width="{WIDTH + 2 * LEFT}" height="{height}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{background}{"".join(bands)}</svg>\n'


def _band(number: int, level: Mapping[str, Any], num_items: int) -> str:
    counts = sorted(level["counts"], reverse=True)
    most = max(counts[0], 1)
    top = number * (HEIGHT + GAP) + GAP

    # 1. Write the title.
    title = (
        f"level {number + 1}: {level['used']} of {len(counts)} codes, perplexity {level['perplexity']:.1f}, "
        f"at most {most:,} items per code"
    )
    parts = [f'<text x="{LEFT}" y="{top - 8}">{title}</text>']

    # 2. Draw one bar per code. The highest bar fills the band.
    bar_width = WIDTH / len(counts)
    color = COLORS[number % len(COLORS)]
    for place, count in enumerate(counts):
        bar_height = HEIGHT * count / most
        x = LEFT + place * bar_width
        y = top + HEIGHT - bar_height
        box = f'x="{x:.2f}" y="{y:.2f}" width="{bar_width:.2f}" height="{bar_height:.2f}"'
        parts.append(f'<rect {box} fill="{color}"/>')

    # 3. Draw the line that marks equal use.
    even = top + HEIGHT * (1 - min(num_items / len(counts) / most, 1))
    parts.append(f'<path d="M{LEFT} {even:.2f}H{LEFT + WIDTH}" stroke="#222" stroke-dasharray="4 3"/>')
    return "".join(parts)
