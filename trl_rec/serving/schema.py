"""Defines the JSON bodies of requests and responses as pydantic models, and the error message for an invalid body.

The pydantic models check types and sizes. The engine checks what depends on the catalogue, such as the columns of a
filter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from trl_rec.serving.config import LARGEST_K


LONGEST_HISTORY = 1000  # items
LONGEST_EXPLAINED = 200  # items; an explanation needs one prompt per item
LONGEST_TEXT = 2000  # characters of an id or title
MOST_CONDITIONS = 50  # top-level entries of a filter: conditions, or alternatives (lists of conditions)
MOST_VALUES = 1000  # entries of all nested lists of a filter: alternatives, conditions, columns, operators and values
WHERE: dict[str, Any] = {"examples": [[["category", "==", "Shoes"], ["price", "<", 50]]]}

Text = Annotated[str, StringConstraints(max_length=LONGEST_TEXT)]


class _Request(BaseModel):
    """The fields that all requests share: a history (as item ids or as titles), a user, or both."""

    model_config = ConfigDict(extra="forbid", strict=True)

    history: list[Text] | None = Field(
        None,
        max_length=LONGEST_HISTORY,
        description="item ids, oldest first; unknown ids are dropped, and the response contains their number",
    )
    titles: list[Text] | None = Field(
        None, max_length=LONGEST_HISTORY, description="exact titles instead of ids, oldest first"
    )
    user: Text | None = Field(
        None,
        description="id of the user; if the request has neither history nor titles, the server uses this user's "
        "history in its dataset",
    )

    @model_validator(mode="after")
    def _has_one_history(self) -> _Request:
        if self.history is not None and self.titles is not None:
            raise PydanticCustomError("sentence", "give either history or titles, not both")
        if self.history is None and self.titles is None and self.user is None:
            raise PydanticCustomError("sentence", "give history, titles or user")
        return self


class RecommendRequest(_Request):
    """The body of `POST /v1/recommend`."""

    k: int = Field(10, ge=1, le=LARGEST_K, description="number of items")
    exclude: list[Text] = Field([], max_length=LONGEST_HISTORY, description="ids of items to leave out")
    where: list[Any] | None = Field(
        None,
        description="conditions on the columns of the catalogue, in the format of `filters` in PyArrow's read_table",
        json_schema_extra=WHERE,
    )
    max_per: dict[Text, int] | None = Field(
        None, max_length=10, description='largest number of items per value of a column, such as {"brand": 2}'
    )

    @field_validator("where")
    @classmethod
    def _is_small(cls, where: list[Any] | None) -> list[Any] | None:
        """Refuses a filter that is too large or too deeply nested. The engine checks the conditions of the filter."""
        level = list(where or [])
        if len(level) > MOST_CONDITIONS:
            raise PydanticCustomError(
                "sentence", f"'where' may have at most {MOST_CONDITIONS} conditions or alternatives"
            )
        number = 0
        for _ in range(4):  # four levels: alternatives, conditions, parts of a condition, values of the operator `in`
            number += len(level)
            if number > MOST_VALUES:
                raise PydanticCustomError("sentence", f"'where' may have at most {MOST_VALUES} values")
            if any(isinstance(one, dict) or not _is_unicode(one) for one in level):
                raise PydanticCustomError("sentence", "'where' may contain lists, texts, numbers and booleans only")
            level = [part for one in level if isinstance(one, list) for part in one]
        if level:
            raise PydanticCustomError("sentence", "'where' is nested too deeply")
        return where


class ExplainRequest(_Request):
    """The body of `POST /v1/explain`."""

    history: list[Text] | None = Field(None, max_length=LONGEST_EXPLAINED, description="item ids, oldest first")
    titles: list[Text] | None = Field(None, max_length=LONGEST_EXPLAINED, description="exact titles, oldest first")
    user: Text | None = Field(
        None,
        description="id of the user; if the request has neither history nor titles, the server uses the newest "
        f"{LONGEST_EXPLAINED} items of this user's history in its dataset",
    )
    item_id: Text = Field(description="id of the item to explain")
    k: int = Field(10, ge=1, le=LONGEST_EXPLAINED, description="largest number of history items to return")


class Item(BaseModel):
    """An item of the catalogue."""

    item_id: str
    title: str
    groups: list[str] = Field([], description="the item's groups, such as its genres")


class ScoredItem(Item):
    """An item of a list, with its score."""

    score: float


class RecommendResponse(BaseModel):
    """The response of `POST /v1/recommend`."""

    items: list[ScoredItem] = Field(description="the recommended items, best first")
    unknown: int = Field(description="number of history items that the catalogue does not contain")
    fallback: bool = Field(
        description="whether the prior alone ranked the items, because the history has no known items; if lists are "
        "served from a file: whether the file has no list for the user"
    )
    short: str | None = Field(None, description="why there are fewer than k items")
    request_id: str
    run: str = Field(description="the run that produced the list: its name, and a hash of its files")


class MovedBy(Item):
    """A history item, and the amount by which the score of the explained item falls without it."""

    difference: float


class ExplainResponse(BaseModel):
    """The response of `POST /v1/explain`."""

    items: list[MovedBy] = Field(description="largest absolute differences first")
    run: str


class ItemsResponse(BaseModel):
    """The response of `GET /v1/items`."""

    items: list[Item] = Field(description="best matches first")


class Problem(BaseModel):
    """Every response with a status of 400 or above."""

    detail: str = Field(description="one sentence that describes the problem")


# Maps some of pydantic's error types to a description of what the value must be.
WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "an object",
    "bool_type": "true or false",
    "string_unicode": "valid Unicode",
    "model_type": "a JSON object",
    "model_attributes_type": "a JSON object",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
}


def problem_sentence(errors: Sequence[Any]) -> str:
    """Returns one sentence that describes the first of pydantic's errors."""
    error: Mapping[str, Any] = errors[0]
    kind = error["type"]
    context = error.get("ctx", {})
    name = _name(error["loc"])
    given = f"{error.get('input')!r:.80}"
    if kind == "json_invalid":
        return f"the body is not valid JSON: {context.get('error', 'it cannot be read')}"
    if kind == "sentence":
        return str(error["msg"])
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        return f"there is no key {name:.80}; GET /openapi.json describes the keys"
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
        return f"{name} must be {bound}, not {given}"
    if kind == "too_long":
        return f"{name} may have at most {context['max_length']} entries"
    if kind == "string_too_long":
        return f"{name} may have at most {context['max_length']} characters"
    if kind in WANTED:
        return f"{name} must be {WANTED[kind]}, not {given}"
    return f"{name}: {error['msg']}"


def _name(place: Sequence[str | int]) -> str:
    """Returns the name of a value, such as `history[3]`."""
    keys = [key for key in place if key not in ("body", "query")]
    if not keys:
        return "the body"
    first, *rest = keys
    shown = str(first) if str(first).isidentifier() and str(first).isascii() else repr(first)
    return shown + "".join(f"[{key!r:.40}]" for key in rest)


def _is_unicode(value: Any) -> bool:
    """Returns False for a text with half of a surrogate pair, because UTF-8 cannot encode it."""
    if not isinstance(value, str):
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
