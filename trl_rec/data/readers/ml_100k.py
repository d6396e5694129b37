"""Reads MovieLens-100k from the files of GroupLens or from RecBole's copy. Both give the same dataset.

RecBole's copy has the year in a separate column. For the item with the title "unknown", this column contains "unkonwn"
(sic). Two items have the genre "unknown", which is converted to an empty list of genres.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import cast, items_table, split_lists, users_table
from trl_rec.data.interactions import interactions_table
from trl_rec.data.log import Log, Options, Reader
from trl_rec.data.readers.fetching import GROUPLENS, find_ml_100k, ml_100k_folder
from trl_rec.data.readers.files import read_delimited, without_gz
from trl_rec.data.readers.recbole import READ_LATER, read_atomic


# Columns of the files of GroupLens, which have no header.
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
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
ITEMS = ["item_id", "title", "release_date", "video_release_date", "imdb_url", "unknown", *GENRES]


class MovieLensReader(Reader):
    """Reader of MovieLens-100k. Downloads the data if no folder is given."""

    needs_folder = False
    license = "non-commercial, no redistribution"  # the terms of GroupLens in a few words

    def find(self, folder: Path) -> dict[str, Path]:
        """Returns a dict that maps the table names `interactions`, `items` and `users` to their files.

        The dict is empty unless all three files exist.
        """
        return find_ml_100k(folder)

    def fetch(self) -> dict[str, Path]:
        """Returns the dict described in `find`, for the files in the cache folder. Downloads them if necessary."""
        return find_ml_100k(ml_100k_folder())

    def read(self, files: dict[str, Path], options: Options) -> Log:
        """Reads the log, with year and genres of items, and age, gender and occupation of users."""
        names = {kind: path.name for kind, path in files.items()}
        if without_gz(files["items"]) == GROUPLENS["items"]:
            titles, genres = _grouplens_items(files["items"])
            ratings = _read_plain(files["interactions"], "\t", RATINGS)
            users = _read_plain(files["users"], "|", USERS)
        else:
            titles, genres = _recbole_items(files["items"])
            ratings = read_atomic(files["interactions"], texts=READ_LATER)
            users = read_atomic(files["users"])

        items = titles.append_column("year", _years(titles["title"])).append_column("genres", genres)
        users = users.select(USERS[:4])  # without the zip code
        users = users.set_column(1, "age", cast(users["age"], pa.int32(), "age", names["users"]))
        return Log(
            interactions=interactions_table(ratings, names["interactions"]),
            items=items_table(items, names["items"]),
            users=users_table(users, names["users"]),
            group_column="genres",
            names=names,
        )


def _read_plain(path: Path, delimiter: str, names: list[str]) -> pa.Table:
    """Reads a file of GroupLens, which has no header."""
    # The files are encoded in Latin-1. Quotation marks are part of the text.
    return read_delimited(path, delimiter=delimiter, quoted=False, names=names, encoding="latin-1")


def _grouplens_items(path: Path) -> tuple[pa.Table, pa.ChunkedArray]:
    """Returns a table of ids and titles, and a column of genres. The file has a column of zeros and ones per genre."""
    table = _read_plain(path, "|", ITEMS)
    flags = np.stack([pc.equal(table[name], "1").to_numpy() for name in GENRES], axis=1)  # (num_items, num_genres)
    offsets = np.concatenate([[0], np.cumsum(flags.sum(1))])
    names = pa.array(GENRES).take(pa.array(np.nonzero(flags)[1]))
    genres = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names)
    return table.select(["item_id", "title"]), pa.chunked_array([genres])


def _recbole_items(path: Path) -> tuple[pa.Table, pa.ChunkedArray]:
    """Returns a table of ids and titles, and a column of genres.

    The year is appended to the title, as in the files of GroupLens.
    """
    table = read_atomic(path, texts=("movie_title", "class"))
    year = table["release_year"]
    in_brackets = pc.binary_join_element_wise("(", year, ")", "")
    titles = pc.binary_join_element_wise(table["movie_title"], in_brackets, " ")
    titles = pc.if_else(pc.equal(year, "unkonwn"), "unknown", titles)  # a typing error of the source
    genres = pc.if_else(pc.equal(table["class"], "unknown"), "", table["class"])
    return pa.table({"item_id": table["item_id"], "title": titles}), split_lists(genres, " ")


def _years(titles: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the last year in parentheses of each title, int32, or null if there is none."""
    # The greedy `.*` makes the pattern match the last year.
    return pc.struct_field(pc.extract_regex(titles, r".*\((?P<year>\d{4})\)"), "year").cast(pa.int32())
