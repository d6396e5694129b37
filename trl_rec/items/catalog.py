"""Defines the catalogue: a table of all items, and the exact text that a model reads and writes for each item.

The code refers to an item by its index, which is its row in the catalogue. The text of an item is called its surface.
The path of an item consists of the token ids of its surface, followed by a terminator if the surface is a title. The
trie stores the paths. One kind of surface is the semantic ID, a short sequence of tokens that are added to the
tokenizer. Users may have semantic IDs too. These identify the users in prompts, but are not stored in the trie. This
module loads neither models nor tokenizers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trl_rec.files import atomic_file, write_json
from trl_rec.items.twins import Twins
from trl_rec.items.user_ids import check_shared_tokens, read_user_ids, tokens_of, write_user_ids
from trl_rec.ragged import Ragged, join


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST_SHARES = 2**28  # maximum number of entries in the matrix that `group_shares` returns (1 GiB)
SURFACES = ("title", "item_token", "semantic_id")


@dataclass(frozen=True, eq=False)
class ItemCatalog:
    """A table of items, and the kind of surface that represents them.

    Args:
        items (`pa.Table`): One row per item. The columns `item_id` (distinct) and `title` must contain strings. The
            table may have further columns.
        surface (`str`, *optional*, defaults to `"title"`): How items are written. `"title"` uses the title in double
            quotes. `"item_token"` uses one token per item, such as `<item_17>` for index 17. `"semantic_id"` uses the
            concatenated tokens of the item's semantic ID, such as `<a_12><b_7><c_201>`.
        group_column (`str`, *optional*): Column of strings or of lists of strings that contains the groups of each
            item, such as genres or brands. Fairness and diversity are measured over these groups.
        semantic_ids (`Ragged`, *optional*): Row `i` contains the tokens of item `i`'s semantic ID, as strings.
        user_ids (`Ragged`, *optional*): Row `u` contains the tokens of user `u`'s semantic ID, as strings, such as
            `<ua_3><ub_17>`. Items must not use these tokens.
        num_retired (`int`, *optional*, defaults to `0`): Number of retired items, which are the last rows of the
            table. A model can read them in histories, but they are in no trie, so they are never recommended.
        license (`str`, *optional*): The licence of the data that the items come from. `trl-rec prepare` records it.
            When a model is pushed to the hub, its catalogue is pushed with it if this licence allows redistribution
            (see [`allows_redistribution`]), or if `include_catalog` is set for the push.
    """

    items: pa.Table
    surface: str = "title"
    group_column: str | None = None
    semantic_ids: Ragged | None = None
    user_ids: Ragged | None = None
    num_retired: int = 0
    license: str | None = None

    def __post_init__(self) -> None:
        # 1. Check the options.
        if self.surface not in SURFACES:
            raise ValueError(f"unknown surface {self.surface!r}; choose one of {', '.join(SURFACES)}")
        if self.surface == "semantic_id" and self.semantic_ids is None:
            raise ValueError(
                "the catalogue has no semantic IDs; run trl-rec tokenize first, or choose the surface 'title' or "
                "'item_token'"
            )
        if self.group_column is not None and self.group_column not in self.items.column_names:
            raise ValueError(
                f"group_column={self.group_column!r} is not a column of the items; choose one of "
                f"{', '.join(self.items.column_names)}"
            )

        # 2. Check the tables.
        _check_texts(self.items, "the table of items")
        _check_repeats(self.items["item_id"])
        if self.semantic_ids is not None and len(self.semantic_ids) != len(self):
            raise ValueError(
                f"there are {len(self.semantic_ids)} semantic IDs for {len(self)} items; give one per item"
            )
        if self.user_ids is not None:
            check_shared_tokens(self.user_ids, self.semantic_ids)
        if not 0 <= self.num_retired < max(len(self), 1):
            raise ValueError(
                f"num_retired is {self.num_retired}, but must be from 0 to {max(len(self) - 1, 0)}, because the "
                f"catalogue has {len(self)} items; correct it"
            )

    def __len__(self) -> int:
        return int(self.items.num_rows)

    def __repr__(self) -> str:
        columns = ", ".join(self.items.column_names)
        return f"ItemCatalog({len(self):,} items with the surface {self.surface!r}; columns: {columns})"

    @property
    def num_recommendable(self) -> int:
        """Number of items that can be recommended, which are the first rows of the table."""
        return len(self) - self.num_retired

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all items, in the order of the catalogue."""
        ids: list[str] = self.items["item_id"].to_pylist()
        return ids

    @cached_property
    def titles(self) -> list[str]:
        """The titles of all items, in the order of the catalogue."""
        titles: list[str] = self.items["title"].to_pylist()
        return titles

    @cached_property
    def positions(self) -> dict[str, int]:
        """The index of each item id."""
        return {item_id: index for index, item_id in enumerate(self.ids)}

    @cached_property
    def twins(self) -> Twins | None:
        """Groups of items with the same title. None if all titles are distinct or the surface is not `"title"`."""
        return Twins.of_titles(self.items["title"]) if self.surface == "title" else None

    def index_of(self, item_ids: Sequence[str] | pa.Array) -> np.ndarray:
        """Returns the index of each item, `(len(item_ids),)`. Raises ValueError if an id is not in the catalogue."""
        wanted = pa.array(item_ids, pa.string())
        found = pc.index_in(wanted, self.items["item_id"].combine_chunks())
        if found.null_count:
            row = int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])
            raise ValueError(
                f"item_ids, row {row}: the item {wanted[row].as_py()!r} is not in the catalogue of {len(self)} items"
            )
        indices: np.ndarray = found.to_numpy(zero_copy_only=False).astype(np.int64)
        return indices

    def ids_of(self, titles: Sequence[str]) -> list[str]:
        """Returns one item id per title. Raises ValueError if no item has exactly this title.

        If several items share a title, the id of the first of these items is returned.
        """
        indices = pc.index_in(pa.array(titles, pa.string()), self.items["title"].combine_chunks()).to_pylist()
        for title, index in zip(titles, indices, strict=True):
            if index is None:
                raise ValueError(f"no item has the title {title!r}; titles are written like {self.titles[0]!r}")
        return [self.ids[index] for index in indices]

    def group_shares(self) -> tuple[list[str], np.ndarray]:
        """Divides each item equally among its groups.

        Returns:
            The names of the groups, and the shares, `(num_items, num_groups)`. An item in k groups has the share 1 / k
            in each of the k groups, and 0 in all other groups. All shares of an item without groups are 0.
        """
        if self.group_column is None:
            raise ValueError("the catalogue has no group_column; set group_column when preparing the data")

        names, groups = self.groups()
        if len(self) * len(names) > LARGEST_SHARES:
            raise ValueError(
                f"group_column={self.group_column!r} has too many groups ({len(names)} for {len(self)} items) to "
                "measure fairness and diversity; choose a group_column with fewer groups, or leave it out"
            )

        shares = np.zeros((len(self), len(names)), np.float32)
        np.add.at(shares, (groups.row_ids, groups.values), 1 / np.maximum(groups.lengths, 1)[groups.row_ids])
        return names, shares

    def groups(self) -> tuple[list[str], Ragged]:
        """Returns the names of all groups, and the groups of each item as indices into the names.

        Without a `group_column`, there are no names and all rows are empty.
        """
        # 1. Read the groups of each item from a column of strings or of lists.
        if self.group_column is None:
            return [], Ragged.repeated(np.empty(0, np.int64), len(self))
        column = self.items[self.group_column].combine_chunks()
        if not pa.types.is_list(column.type):
            present = column.is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
            members = Ragged.from_lengths(column.drop_null().to_numpy(zero_copy_only=False), present)
        else:
            members = Ragged.from_arrow(column.fill_null([]))

        # 2. Number the groups.
        names, groups = np.unique(members.values.astype(str), return_inverse=True)
        return names.tolist(), Ragged(groups, members.offsets)

    def with_surface(
        self, surface: str, semantic_ids: Ragged | None = None, user_ids: Ragged | None = None
    ) -> ItemCatalog:
        """Returns the catalogue with another surface. `semantic_ids` and `user_ids` are replaced only if given."""
        semantic_ids = self.semantic_ids if semantic_ids is None else semantic_ids
        user_ids = self.user_ids if user_ids is None else user_ids
        return replace(self, surface=surface, semantic_ids=semantic_ids, user_ids=user_ids)

    def without_retired(self) -> ItemCatalog:
        """Returns the catalogue without its retired items."""
        if not self.num_retired:
            return self
        count = self.num_recommendable
        semantic_ids = None if self.semantic_ids is None else self.semantic_ids.first(count)
        return replace(self, items=self.items.slice(0, count), semantic_ids=semantic_ids, num_retired=0)

    @cached_property
    def surfaces(self) -> list[str]:
        """The surfaces of all items, in the order of the catalogue."""
        if self.surface == "title":
            return [f'"{title}"' for title in self.titles]
        if self.surface == "item_token":
            return [f"<item_{index}>" for index in range(len(self))]
        assert self.semantic_ids is not None
        return ["".join(self.semantic_ids[index]) for index in range(len(self))]

    @cached_property
    def user_surfaces(self) -> list[str]:
        """The texts of all users' semantic IDs, in the order of users; empty if users have no semantic IDs."""
        return [] if self.user_ids is None else ["".join(self.user_ids[user]) for user in range(len(self.user_ids))]

    @cached_property
    def item_tokens(self) -> list[str]:
        """The tokens that must be added to a tokenizer for the surfaces of the items; empty for titles."""
        if self.surface == "title":
            return []
        return self.surfaces if self.surface == "item_token" else tokens_of(self.semantic_ids)

    @cached_property
    def new_tokens(self) -> list[str]:
        """All tokens that must be added to a tokenizer: the tokens of items, then the tokens of users."""
        return [*self.item_tokens, *tokens_of(self.user_ids)]

    def surface_ids(self, tokenizer: PreTrainedTokenizerBase) -> Ragged:
        """Returns the token ids of each item's surface; row `i` belongs to item `i`."""
        if self.surface == "title":
            return Ragged.from_lists(
                tokenizer(self.surfaces, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            )

        vocabulary = _checked_vocabulary(tokenizer, self.item_tokens)
        if self.surface == "item_token":
            tokens = np.array([vocabulary[token] for token in self.surfaces], dtype=np.int64)
            return Ragged.from_lengths(tokens, np.ones(len(self), np.int64))
        assert self.semantic_ids is not None
        return _token_ids(self.semantic_ids, vocabulary)

    def user_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> Ragged:
        """Returns the token ids of each user's semantic ID; row `u` belongs to user `u`."""
        if self.user_ids is None:
            raise ValueError(
                "the catalogue has no semantic IDs for users; make them first with trl-rec tokenize --method dual, or "
                "remove {user} from the prompt"
            )
        return _token_ids(self.user_ids, _checked_vocabulary(tokenizer, tokens_of(self.user_ids)))

    def paths(self, tokenizer: PreTrainedTokenizerBase) -> Ragged:
        """Returns the path of each item: the token ids that the model generates to recommend the item.

        Row `i` is the path of item `i`. The path of a title ends with EOS, so it is no prefix of a longer path.
        """
        surfaces = self.surface_ids(tokenizer)
        if self.surface != "title":
            return surfaces
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token to end titles with; set tokenizer.eos_token")
        eos = np.full(len(self), tokenizer.eos_token_id, dtype=np.int64)
        return join(surfaces, Ragged.from_lengths(eos, np.ones(len(self), np.int64)))

    def list_paths(self, tokenizer: PreTrainedTokenizerBase) -> Ragged:
        """Returns the path of each item, for a model that writes lists; row `i` is the path of item `i`.

        The path of a title ends with a line break. The paths of other surfaces are the same as in `paths`. The EOS at
        the end of a list is not part of any path.
        """
        surfaces = self.surface_ids(tokenizer)
        if self.surface != "title":
            return surfaces
        line_break = np.array(tokenizer("\n", add_special_tokens=False)["input_ids"], np.int64)
        if not len(line_break):
            raise ValueError(
                "the tokenizer drops line breaks, so the titles in a list cannot be separated; choose another "
                "tokenizer, or the surface 'item_token' or 'semantic_id'"
            )
        return join(surfaces, Ragged.repeated(line_break, len(self)))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the ids and titles of all items, in the order of the catalogue, and of `num_retired`."""
        digest = hashlib.sha256()
        if self.num_retired:  # without retired items, the hash is the same as in earlier versions of this library
            digest.update(f"{self.num_retired} retired".encode() + b"\0")
        for name in ("item_id", "title"):
            # The zero byte marks the end of each text; otherwise ["ab", "c"] and ["a", "bc"] would have the same hash.
            for text in self.items[name].to_pylist():
                digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Writes `items.parquet`, `catalog.json` and, if users have semantic IDs, `user_ids.parquet`."""
        folder = Path(folder)

        # 1. Write the tables.
        items = self.items
        if self.semantic_ids is not None:
            column = Ragged(self.semantic_ids.values.astype(object), self.semantic_ids.offsets).to_arrow()
            items = items.append_column("semantic_id", column)
        with atomic_file(folder / "items.parquet") as temporary:
            pq.write_table(items, temporary)
        write_user_ids(self.user_ids, folder)

        # 2. Write the settings and the fingerprint. `load` uses the fingerprint to detect that ids or titles changed.
        card = {
            "surface": self.surface,
            "group_column": self.group_column,
            "num_items": len(self),
            **({"num_retired": self.num_retired} if self.num_retired else {}),
            **({} if self.license is None else {"license": self.license}),
            "fingerprint": self.fingerprint,
        }
        write_json(folder / "catalog.json", card)

    @classmethod
    def load(cls, folder: str | Path, *, remedy: str = "run trl-rec prepare again with --overwrite") -> ItemCatalog:
        """Loads a catalogue that `save` wrote. Messages about missing or damaged files end with the `remedy`."""
        folder = Path(folder)
        if not (folder / "catalog.json").is_file():
            raise ValueError(f"{folder} contains no catalogue (catalog.json is missing); {remedy}")

        # 1. Read the files.
        try:
            card: dict[str, Any] = json.loads((folder / "catalog.json").read_text(encoding="utf-8"))
            surface, group_column, fingerprint = (card[name] for name in ("surface", "group_column", "fingerprint"))
            num_retired = int(card.get("num_retired", 0))
            license = card.get("license")
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{folder} is damaged (catalog.json cannot be read: {error!r}); {remedy}") from error
        try:
            items = pq.read_table(folder / "items.parquet")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{folder} is damaged (items.parquet cannot be read: {error!r}); {remedy}") from error

        # 2. Move the semantic IDs out of the table. `save` never writes invalid content, so any error means that the
        # files are damaged.
        try:
            _check_texts(items, "items.parquet")
            semantic_ids = None
            if "semantic_id" in items.column_names:
                _check_semantic_ids(items["semantic_id"])
                semantic_ids = Ragged.from_arrow(items["semantic_id"])
                items = items.drop_columns(["semantic_id"])
            catalog = cls(items, surface, group_column, semantic_ids, read_user_ids(folder), num_retired, license)
        except ValueError as error:
            raise ValueError(f"{folder} is damaged ({error}); {remedy}") from error

        # 3. Check that the files belong together.
        if catalog.fingerprint != fingerprint:
            raise ValueError(f"{folder}: items.parquet and catalog.json describe different items; {remedy}")
        return catalog


def _checked_vocabulary(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> dict[str, int]:
    """Returns the tokenizer's vocabulary. Raises ValueError if a token is missing from it."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise ValueError(
            f"the tokenizer lacks {len(missing)} of the catalogue's {len(tokens)} tokens, such as {missing[0]!r}; "
            "add them with tokenizer.add_tokens(catalog.new_tokens) and resize the model's embeddings"
        )
    return vocabulary


def _token_ids(ids: Ragged, vocabulary: dict[str, int]) -> Ragged:
    """Converts tokens to token ids. Each distinct token is looked up only once."""
    names, position = np.unique(ids.values.astype(str), return_inverse=True)
    return Ragged(np.array([vocabulary[name] for name in names.tolist()], np.int64)[position], ids.offsets)


def _check_texts(items: pa.Table, where: str) -> None:
    """Raises ValueError unless every item has an id and a title, as text."""
    for name in ("item_id", "title"):
        if name not in items.column_names:
            raise ValueError(f"{where} must have a column {name}, but has only {', '.join(items.column_names)}")
        column = items[name]
        if not _is_text(column.type):
            raise ValueError(f"{where}: the column {name} must contain text, not {column.type}")
        if column.null_count:
            raise ValueError(f"{where}: every item must have a {name}, but {column.null_count} items have none")


def _check_semantic_ids(column: pa.ChunkedArray) -> None:
    """Raises ValueError unless every item has a list of tokens."""
    values = getattr(column.type, "value_type", None)
    if values is None or not _is_text(values) or column.null_count:
        raise ValueError("items.parquet: the column semantic_id must contain a list of tokens for each item")


def _is_text(kind: pa.DataType) -> bool:
    """Returns whether a column of this type contains text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_repeats(ids: pa.ChunkedArray) -> None:
    """Raises ValueError if an item id occurs more than once."""
    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise ValueError(f"item id {repeated!r} occurs more than once in the catalogue; item ids must be distinct")
