"""MovieLens-100k, from GroupLens' own files or from RecBole's copy: the same catalogue, users and ratings from either.

RecBole's copy has the year apart from the title, and spells the one title that is unknown "unkonwn". The genre
"unknown", which two items carry, is no genre here: they are in none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import cast, interactions_table, items_table, split_lists, users_table
from trl_rec.data.delimited import read_delimited
from trl_rec.data.log import Log, Options
from trl_rec.data.readers.recbole import read_atomic


OPTIONS: frozenset[str] = frozenset()
GROUPLENS = {"interactions": "u.data", "items": "u.item", "users": "u.user"}
RECBOLE = {"interactions": "ml-100k.inter", "items": "ml-100k.item", "users": "ml-100k.user"}
RATINGS = ["user_id", "item_id", "rating", "timestamp"]
USERS = ["user_id", "age", "gender", "occupation", "zip_code"]
GENRES = [
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
]
GENRES += ["Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"]
ITEMS = ["item_id", "title", "release_date", "video_release_date", "imdb_url", "unknown", *GENRES]


def find(folder: Path) -> dict[str, Path]:
    """The three files of either origin."""
    for names in (GROUPLENS, RECBOLE):
        files = {kind: folder / name for kind, name in names.items()}
        if all(path.is_file() for path in files.values()):
            return files
    return {}


def read(files: dict[str, Path], options: Options) -> Log:
    """The log, with genres as the items' groups, and age, gender and occupation of the users."""
    names = {kind: path.name for kind, path in files.items()}
    own = names == GROUPLENS
    titles, genres = _grouplens_items(files["items"]) if own else _recbole_items(files["items"])
    ratings = _plain(files["interactions"], "\t", RATINGS) if own else read_atomic(files["interactions"])
    users = _plain(files["users"], "|", USERS) if own else read_atomic(files["users"])
    items = titles.append_column("year", _years(titles["title"])).append_column("genres", genres)
    return Log(
        interactions=interactions_table(ratings, names["interactions"]),
        items=items_table(items, names["items"]),
        users=users_table(_with_ages(users.select(USERS[:4]), names["users"]), names["users"]),
        group_column="genres",
        names=names,
    )


def _plain(path: Path, delimiter: str, names: list[str]) -> pa.Table:
    return read_delimited(path, delimiter=delimiter, quoted=False, names=names, encoding="latin-1")


def _grouplens_items(path: Path) -> tuple[pa.Table, pa.ChunkedArray]:
    table = _plain(path, "|", ITEMS)
    flags = np.stack([pc.equal(table[name], "1").to_numpy() for name in GENRES], axis=1)
    offsets = np.concatenate([[0], np.cumsum(flags.sum(1))])
    genres = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(GENRES).take(pa.array(np.nonzero(flags)[1]))
    )
    return table.select(["item_id", "title"]), pa.chunked_array([genres])


def _recbole_items(path: Path) -> tuple[pa.Table, pa.ChunkedArray]:
    table = read_atomic(path, texts=("movie_title", "class"))
    year = table["release_year"]
    titles = pc.binary_join_element_wise(table["movie_title"], pc.binary_join_element_wise("(", year, ")", ""), " ")
    titles = pc.if_else(pc.equal(year, "unkonwn"), "unknown", titles)
    genres = pc.if_else(pc.equal(table["class"], "unknown"), "", table["class"])
    return pa.table({"item_id": table["item_id"], "title": titles}), split_lists(genres, " ")


def _with_ages(users: pa.Table, where: str) -> pa.Table:
    return users.set_column(1, "age", cast(users["age"], pa.int32(), "age", where))


def _years(titles: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.struct_field(pc.extract_regex(titles, r".*\((?P<year>\d{4})\)"), "year").cast(pa.int32())
