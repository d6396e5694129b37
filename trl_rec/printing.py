"""Makes texts from datasets safe to print, and formats durations and errors.

A title may contain control characters that a terminal would execute.
"""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Returns the text on one line, without control characters.

    Each white-space character becomes a space. Every other character that cannot be printed becomes U+FFFD, including
    escape characters and characters that change the direction of the text.
    """
    return text if text.isprintable() else "".join(map(_printable, text))


def printable_lines(text: str) -> str:
    """Applies [`printable`] to each line of the text, and keeps the line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its type if it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def in_words(seconds: float) -> str:
    """Returns a duration in words, such as `45 s`, `8 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    is_space = character in "\t\n\v\f\r" or unicodedata.category(character) in ("Zs", "Zl", "Zp")
    return " " if is_space else "\N{REPLACEMENT CHARACTER}"
