"""Checks the options of `prepare` that are strings or mappings, except `format`, `split` and `license`."""

from __future__ import annotations

from collections.abc import Mapping

from trl_rec.data.log import Options
from trl_rec.ranges import FINITE


OWN_COLUMNS = ("item_id", "title", "semantic_id")  # columns that identify single items, and cannot contain groups


def check_options(options: Options, unknown_items: str, repeats: str | None) -> None:
    """Raises ValueError if an option has a wrong type or value, or does not fit the other options."""
    # 1. Check strings and choices.
    for name in ("title_column", "group_column", "group_separator", "timestamp_format", "event_column"):
        text = getattr(options, name)
        if text is not None and (not isinstance(text, str) or not text):
            raise ValueError(f"{name} must be a non-empty string, not {text!r}; correct it, or leave it out")
    _check_choice("empty_ratings", options.empty_ratings, ("refuse", "drop"))
    _check_choice("unknown_items", unknown_items, ("refuse", "drop", "keep"))
    if repeats is not None:
        _check_choice("repeats", repeats, ("keep", "first", "last"))

    # 2. Check column names.
    columns = options.columns
    if columns is not None and not _is_text_mapping(columns):
        raise ValueError(
            "the option 'columns' must map the column names of trl-rec to your column names (strings), as in "
            f"{{'user_id': 'customer'}}, not {columns!r}; correct it"
        )
    if options.group_column in OWN_COLUMNS:
        raise ValueError(
            f"group_column cannot be {options.group_column}, which identifies single items; choose a column of "
            "groups, such as genres or brands"
        )

    # 3. Check the timestamp format.
    if options.timestamp_format is not None and "%" not in options.timestamp_format:
        raise ValueError(
            f"timestamp_format must contain directives such as %Y, but is {options.timestamp_format!r}; write "
            "'%d/%m/%Y' for 28/03/2024"
        )

    # 4. Check events and their ratings.
    if (options.event_column is None) != (options.event_ratings is None):
        raise ValueError("event_column and event_ratings must be set together; set both, or leave both out")
    if options.event_ratings is not None:
        _check_ratings(options.event_ratings)
        if options.empty_ratings == "drop":
            raise ValueError("empty_ratings has no effect with an event_column; leave empty_ratings out")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ValueError if the value is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, not {value!r}")


def _is_text_mapping(value: object) -> bool:
    """Returns whether a value is a mapping from strings to strings."""
    return isinstance(value, Mapping) and all(isinstance(part, str) for pair in value.items() for part in pair)


def _check_ratings(ratings: object) -> None:
    """Raises ValueError unless the value maps events to numbers or None, with at least one number."""
    example = "write it as {'view': 2, 'cart': 4, 'purchase': 5, 'remove': null}"
    if not isinstance(ratings, Mapping) or not all(isinstance(event, str) for event in ratings):
        raise ValueError(f"event_ratings must map events to ratings, not {ratings!r}; {example}")
    for event, rating in ratings.items():
        if rating is not None:
            FINITE.check(f"event_ratings: {event}", rating)
    if all(rating is None for rating in ratings.values()):
        raise ValueError(f"event_ratings gives no event a rating, so every row would be dropped; {example}")
