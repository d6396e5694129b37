"""One reader a format: which files are its own, and how they become a `Log`."""

from __future__ import annotations

from pathlib import Path

from trl_rec.data.log import Reader
from trl_rec.data.readers import bigrec, lcrec, ml_100k, recbole, table, toy
from trl_rec.data.readers.fetching import ml_100k_folder


READERS: dict[str, Reader] = {  # a folder is given to the first that finds its files there
    "ml-100k": ml_100k,
    "recbole": recbole,
    "bigrec": bigrec,
    "lcrec": lcrec,
    "table": table,
    "toy": toy,
}
NAMED = ("toy", "ml-100k")  # sources that need no folder


def locate(source: str | Path, format: str | None = None) -> tuple[str, dict[str, Path]]:
    """The source's format and its files. `"toy"` and `"ml-100k"` name sources that are made, or fetched once and
    cached."""
    if format is not None and format not in READERS:
        raise ValueError(f"unknown format {format!r}; choose one of {', '.join(READERS)}")
    if str(source) in NAMED and format in (None, str(source)):
        return str(source), ml_100k.find(ml_100k_folder()) if str(source) == "ml-100k" else {}
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the source's folder, or one of the names {', '.join(NAMED)}")
    format = format or detect(folder)
    files = READERS[format].find(folder)
    if not files:
        raise ValueError(f"{folder} holds no files of the format {format}; name another format, or another folder")
    return format, files


def detect(folder: Path) -> str:
    """The format of the files in the folder."""
    for name, reader in READERS.items():
        if reader.find(folder):
            return name
    raise ValueError(
        f"{folder} holds files of none of the formats {', '.join(READERS)}; see the documentation of data formats"
    )
