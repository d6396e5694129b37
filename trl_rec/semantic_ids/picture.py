"""How often each code is used, as an SVG file that any browser shows: a band a level, a bar a code, the most frequent
first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


WIDTH, HEIGHT, GAP, LEFT = 768, 110, 34, 10
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")  # Paul Tol's, told apart by all eyes


def code_use_picture(card: Mapping[str, Any]) -> str:
    """The text of the SVG, from what [`read_ids_card`] returned. The line is where bars would end if codes were used
    alike."""
    bands = [_band(number, level, card["num_items"]) for number, level in enumerate(card["levels"])]
    height = len(bands) * (HEIGHT + GAP) + GAP // 2
    size, style = (
        f'width="{WIDTH + 2 * LEFT}" height="{height}"',
        'font-family="sans-serif" font-size="12" fill="#222"',
    )
    background = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{background}{"".join(bands)}</svg>\n'


def _band(number: int, level: Mapping[str, Any], num_items: int) -> str:
    counts = sorted(level["counts"], reverse=True)
    top, most, wide = number * (HEIGHT + GAP) + GAP, max(counts[0], 1), WIDTH / len(counts)
    told = f"level {number + 1}: {level['used']} of {len(counts)} codes, perplexity {level['perplexity']:.1f}, at most {most:,}"
    parts = [f'<text x="{LEFT}" y="{top - 8}">{told}</text>']
    for place, count in enumerate(counts):
        high = HEIGHT * count / most
        box = f'x="{LEFT + place * wide:.2f}" y="{top + HEIGHT - high:.2f}" width="{wide:.2f}" height="{high:.2f}"'
        parts.append(f'<rect {box} fill="{COLORS[number % len(COLORS)]}"/>')
    even = top + HEIGHT * (1 - min(num_items / len(counts) / most, 1))
    parts.append(f'<path d="M{LEFT} {even:.2f}H{LEFT + WIDTH}" stroke="#222" stroke-dasharray="4 3"/>')
    return "".join(parts)
