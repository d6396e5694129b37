"""MovieLens-100k is read from the files of GroupLens and of RecBole, with the same result."""

import pytest

from trl_rec.data import prepare
from trl_rec.data.readers.ml_100k import GENRES


RATINGS = "1\t3\t5\t10\n1\t1\t4\t10\n2\t267\t3\t5\n1\t1412\t2\t11\n1\t267\t1\t12\n"
MOVIES = {  # title, year, genres
    "1": ("Toy Story", "1995", "Animation Children's Comedy"),
    "3": ("Misérables, Les (Long, The)", "1998", "Film-Noir Sci-Fi"),
    "267": ("unkonwn", "unkonwn", "unknown"),
    "1412": ("Land Before Time III: The Time of the Great Giving (1995)", "V", "Animation"),
    "1373": ("Good Morning", "1971", "unknown"),
}
USERS = {"1": ("24", "M", "technician", "85711"), "2": ("53", "F", "other", "94043")}


def as_recbole(folder):
    folder.mkdir()
    (folder / "ml-100k.inter").write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + RATINGS)
    rows = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    rows += ["\t".join((item, *movie)) for item, movie in MOVIES.items()]
    (folder / "ml-100k.item").write_text("\n".join(rows), encoding="utf-8")
    rows = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    (folder / "ml-100k.user").write_text("\n".join([*rows, *("\t".join((user, *row)) for user, row in USERS.items())]))
    return folder


def as_grouplens(folder):
    folder.mkdir()
    (folder / "u.data").write_text(RATINGS)
    rows = []
    for item, (title, year, genres) in MOVIES.items():
        flags = ["1" if genre in genres.split() else "0" for genre in ["unknown", *GENRES]]
        title = "unknown" if title == "unkonwn" else f"{title} ({year})"
        rows.append("|".join([item, title, "" if title == "unknown" else "01-Jan-1995", "", "http://imdb", *flags]))
    (folder / "u.item").write_text("\n".join([*rows, ""]), encoding="latin-1")
    (folder / "u.user").write_text("\n".join("|".join((user, *row)) for user, row in USERS.items()))
    return folder


def test_both_origins_give_the_same_dataset(tmp_path):
    one, other = (
        prepare(write(tmp_path / name), tmp_path / f"{name}-out")
        for name, write in (("r", as_recbole), ("g", as_grouplens))
    )
    assert one.card["format"] == other.card["format"] == "ml-100k"
    assert one.catalog.items.equals(other.catalog.items) and one.users.equals(other.users)
    assert one.interactions.equals(other.interactions) and one.card["fingerprint"] == other.card["fingerprint"]
    assert one.catalog.items.to_pylist() == [
        {"item_id": "1", "title": "Toy Story (1995)", "year": 1995, "genres": ["Animation", "Children's", "Comedy"]},
        {
            "item_id": "3",
            "title": "Misérables, Les (Long, The) (1998)",
            "year": 1998,
            "genres": ["Film-Noir", "Sci-Fi"],
        },
        {"item_id": "267", "title": "unknown", "year": None, "genres": []},
        {
            "item_id": "1412",
            "title": "Land Before Time III: The Time of the Great Giving (1995) (V)",
            "year": 1995,
            "genres": ["Animation"],
        },
        {"item_id": "1373", "title": "Good Morning (1971)", "year": 1971, "genres": []},
    ]
    assert one.users.to_pylist()[0] == {"user_id": "1", "age": 24, "gender": "M", "occupation": "technician"}
    assert one.catalog.group_column == "genres"
    assert one.test.to_list()[0] == {
        "user": 0,
        "history": [1, 0, 3],
        "history_ratings": [5, 4, 2],
        "targets": [2],
        "target_ratings": [1],
        "timestamp": 12,
    }


def test_the_published_data_is_read(tmp_path, ml_100k_folder):
    dataset = prepare(ml_100k_folder, tmp_path / "out")
    card = dataset.card
    assert (card["num_users"], card["num_items"], card["num_interactions"]) == (943, 1_682, 100_000)
    assert card["rows"] == {"train": 943, "validation": 943, "test": 943} and round(card["tied_timestamps"], 2) == 0.76
    assert dataset.catalog.titles[0] == "Toy Story (1995)" and dataset.catalog.titles[266] == "unknown"
    assert dataset.catalog.group_shares()[0] == sorted(GENRES)
    assert dataset.catalog.items["year"].null_count == 1 and len(set(dataset.catalog.titles)) == 1_664


def test_the_files_of_recbole_can_also_be_read_in_the_format_recbole(tmp_path, ml_100k_folder):
    if not (ml_100k_folder / "ml-100k.inter").is_file():
        pytest.skip("this copy of ml-100k does not come from RecBole")
    dataset = prepare(ml_100k_folder, tmp_path / "out", format="recbole", group_column="class")
    assert dataset.card["num_interactions"] == 100_000 and dataset.catalog.titles[0] == "Toy Story"
