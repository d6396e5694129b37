"""Makes text from data safe to print: a title may contain the control characters of a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """The text on one line, without control characters.

    White space becomes a space. Escape sequences, characters that change the direction of the text, and all others
    that have no shape become U+FFFD.
    """
    return text if text.isprintable() else "".join(map(_printable, text))


def printable_lines(text: str) -> str:
    """The text with its line breaks, and each line as [`printable`] returns it."""
    return "\n".join(map(printable, text.split("\n")))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    is_space = character in "\t\n\v\f\r" or unicodedata.category(character) in ("Zs", "Zl", "Zp")
    return " " if is_space else "\N{REPLACEMENT CHARACTER}"
