"""Writes small source folders for `prepare`, and returns the rows of a prepared dataset as ids."""

import csv


LOG = [  # user, item, timestamp, rating
    ("u1", "b", 1, 5),
    ("u2", "a", 2, 4),
    ("u1", "a", 3, 3),
    ("u1", "c", 3, 2),
    ("u2", "c", 4, 1),
    ("u1", "d", 5, 5),
    ("u2", "b", 6, 4),
    ("u3", "a", 7, 3),
]
ITEMS = [("a", "Apple"), ("b", "Bread"), ("c", "Cheese"), ("d", "Dates"), ("e", "Eggs")]


def write_csv(path, header, rows):
    """Writes a CSV file, and quotes text where necessary."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_table(folder, log=LOG, items=ITEMS, users=None, header=("user_id", "item_id", "timestamp", "rating")):
    """Writes a source folder of the format `table`, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "interactions.csv", header, log)
    if items is not None:
        write_csv(folder / "items.csv", ("item_id", "title"), items)
    if users is not None:
        write_csv(folder / "users.csv", ("user_id", "age"), users)
    return folder


def rows_of(dataset, split):
    """Returns a dict from user id to `(history, targets)`, which are lists of item ids. The split must have one row
    per user."""
    users, items = dataset.users["user_id"].to_pylist(), dataset.catalog.ids
    return {
        users[row["user"]]: ([items[item] for item in row["history"]], [items[item] for item in row["targets"]])
        for row in getattr(dataset, split).to_list()
    }
