"""Tests how the format of a source is detected, how it can be chosen, and how a new format is added."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.data.readers.test_bigrec import write as write_bigrec
from tests.data.readers.test_lcrec import write as write_lcrec
from tests.data.readers.test_ml_100k import as_grouplens, as_recbole
from tests.data.readers.test_recbole import INTER
from tests.data.readers.test_recbole import write as write_recbole
from tests.data.sources import rows_of, write_table
from trl_rec.data import prepare
from trl_rec.data.interactions import interactions_table
from trl_rec.data.log import Log, Reader
from trl_rec.data.readers import READERS, detect, locate


WRITERS = {
    "bigrec": [write_bigrec],
    "lcrec": [write_lcrec],
    "ml-100k": [as_recbole, as_grouplens],
    "recbole": [lambda folder: write_recbole(folder, inter=INTER)],
    "table": [write_table],
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_format_is_detected_from_the_files(tmp_path, name):
    for position, write in enumerate(WRITERS[name]):
        folder = write(tmp_path / str(position))
        assert detect(folder) == name and locate(folder)[0] == name
        assert [other for other, reader in READERS.items() if reader.find(folder)] in ([name], ["ml-100k", "recbole"])


def test_a_folder_without_a_known_format_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ValueError, match="no files of a known format .ml-100k, recbole, bigrec, lcrec, table, toy"):
        detect(tmp_path)


def test_files_of_another_format_do_not_prevent_detection(tmp_path):
    """Two files with names like those of BIGRec's training file are ambiguous, but only for the reader of BIGRec."""
    folder = write_table(tmp_path)
    for name in ("train_a.csv", "train_b.csv"):
        (folder / name).write_text("a,b\n1,2\n")
    assert detect(folder) == "table"
    with pytest.raises(ValueError, match="train_a.csv and train_b.csv; keep only one"):
        locate(folder, "bigrec")
    for path in folder.iterdir():
        if not path.name.startswith("train"):
            path.unlink()
    with pytest.raises(ValueError, match="train_a.csv and train_b.csv; keep only one"):
        detect(folder)


def test_the_format_can_be_chosen_by_name(tmp_path):
    assert locate(as_recbole(tmp_path / "source"), "recbole")[0] == "recbole"
    with pytest.raises(ValueError, match="contains no files of the format lcrec"):
        locate(tmp_path / "source", "lcrec")


def test_toy_needs_no_folder():
    assert locate("toy") == locate("toy", "toy") == ("toy", {})


@pytest.mark.parametrize("source", ["./toy", Path("toy")], ids=str)
def test_a_folder_may_have_the_name_of_a_format(tmp_path, monkeypatch, source):
    as_recbole(tmp_path / "toy")
    monkeypatch.chdir(tmp_path)
    assert locate(source)[0] == "ml-100k"


def test_a_new_format_needs_only_a_reader_and_an_entry(tmp_path, monkeypatch):
    class Lines(Reader):
        """Reads files with one user and one item per line, in order of time."""

        has_timestamps = False

        def find(self, folder):
            return {"interactions": folder / "log.txt"} if (folder / "log.txt").is_file() else {}

        def read(self, files, options):
            users, items = zip(*(line.split() for line in files["interactions"].open()), strict=True)
            columns = {"user_id": users, "item_id": items, "timestamp": list(range(len(users)))}
            return Log(
                interactions=interactions_table(pa.table(columns), "log.txt"), names={"interactions": "log.txt"}
            )

    monkeypatch.setitem(READERS, "lines", Lines())
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "log.txt").write_text("u a\nu b\nv a\nu c\n")
    dataset = prepare(tmp_path / "source", tmp_path / "out")
    assert dataset.card["format"] == "lines" and rows_of(dataset, "test") == {"u": (["a", "b"], ["c"])}
    with pytest.raises(ValueError, match="the source has no timestamps"):
        prepare(tmp_path / "source", tmp_path / "other", split="time")
