import pytest

from tests.data.readers.test_bigrec import write as write_bigrec
from tests.data.readers.test_lcrec import write as write_lcrec
from tests.data.readers.test_ml_100k import as_grouplens, as_recbole
from tests.data.readers.test_recbole import INTER
from tests.data.readers.test_recbole import write as write_recbole
from tests.data.sources import write_table
from trl_rec.data.readers import READERS, detect, locate


WRITERS = {
    "bigrec": [write_bigrec],
    "lcrec": [write_lcrec],
    "ml-100k": [as_recbole, as_grouplens],
    "recbole": [lambda folder: write_recbole(folder, inter=INTER)],
    "table": [write_table],
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_format_is_told_by_the_files(tmp_path, name):
    for position, write in enumerate(WRITERS[name]):
        folder = write(tmp_path / str(position))
        assert detect(folder) == name and locate(folder)[0] == name
        assert [other for other, reader in READERS.items() if reader.find(folder)] in ([name], ["ml-100k", "recbole"])


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ValueError, match="none of the formats ml-100k, recbole, bigrec, lcrec, table, toy"):
        detect(tmp_path)


def test_the_format_can_be_named(tmp_path):
    assert locate(as_recbole(tmp_path / "source"), "recbole")[0] == "recbole"
    with pytest.raises(ValueError, match="holds no files of the format lcrec"):
        locate(tmp_path / "source", "lcrec")


def test_toy_needs_no_folder():
    assert locate("toy") == locate("toy", "toy") == ("toy", {})
