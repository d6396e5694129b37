"""Lists the readers of all formats, and detects the format of a source from its files."""

from __future__ import annotations

from pathlib import Path

from trl_rec.data.log import Reader
from trl_rec.data.readers import bigrec, lcrec, ml_100k, recbole, table, toy
from trl_rec.data.readers.hub import hub_folder, is_hub_source


# Detection uses the first reader that finds its files, so specific formats precede general ones. For example, a folder
# with RecBole's copy of MovieLens-100k is read as ml-100k.
READERS: dict[str, Reader] = {
    "ml-100k": ml_100k.MovieLensReader(),
    "recbole": recbole.RecBoleReader(),
    "bigrec": bigrec.BigRecReader(),
    "lcrec": lcrec.LcRecReader(),
    "table": table.TableReader(),
    "toy": toy.ToyReader(),
}


def locate(source: str | Path, format: str | None = None) -> tuple[str, dict[str, Path]]:
    """Returns the format of a source, and a dict that maps the name of each table to its file.

    Args:
        source: A folder, the name of a format that needs no folder (`"toy"`, `"ml-100k"`), or a dataset on the Hugging
            Face Hub (`"hf://datasets/owner/name"`). A `Path` is always a folder.
        format (*optional*): Name of the format. By default, it is detected from the files.
    """
    if format is not None and format not in READERS:
        raise ValueError(f"unknown format {format!r}; choose one of {', '.join(READERS)}")

    names = [name for name, reader in READERS.items() if not reader.needs_folder]
    if isinstance(source, str) and source in names and format in (None, source):
        return source, READERS[source].fetch()

    folder = hub_folder(str(source)) if is_hub_source(source) else Path(source)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder; give the folder of the source, one of the names {', '.join(names)}, or "
            "hf://datasets/owner/name for a dataset on the Hugging Face Hub"
        )
    format = format or detect(folder)
    files = READERS[format].find(folder)
    if not files:
        raise ValueError(f"{folder} contains no files of the format {format}; choose another format or another folder")
    return format, files


def detect(folder: Path) -> str:
    """Returns the format of the files in a folder. Raises ValueError if no reader finds its files."""
    # A reader raises an error if several files have the name that it looks for. Another reader may still find its
    # files.
    errors: list[ValueError] = []
    for name, reader in READERS.items():
        try:
            if reader.find(folder):
                return name
        except ValueError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    raise ValueError(f"{folder} contains no files of a known format ({', '.join(READERS)}); see docs/data.md")
