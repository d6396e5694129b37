"""Tests that `trl-rec tokenize` refuses malformed input and damaged files, and that a damaged item tower (the model
that computes the IDs) is refused. Also tests that cached item vectors in damaged files are computed again."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.robustness import folder_runs
from tests.robustness.attacks import Attack, assert_refused, contents, each
from trl_rec.data import load
from trl_rec.semantic_ids import DualIdsConfig, ItemIdEncoder, make_dual_ids


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a dataset that already has semantic IDs. Their settings differ from those that the tests use."""
    folder = tmp_path_factory.mktemp("start") / "data"
    folder_runs.make_start(folder)
    return folder


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Returns a function that writes or replaces a file."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str) -> Callable[[Path], object]:
    """Returns a function that removes the second half of a file."""
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def edit(name: str, **values: object) -> Callable[[Path], object]:
    """Returns a function that sets keys of a JSON file. The value `...` removes a key."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        content = {key: value for key, value in content.items() if value is not ...}
        (folder / name).write_text(json.dumps(content))

    return change


def index(tokens: Callable[[int], object]) -> Callable[[Path], object]:
    """Returns a function that writes an index file, which maps each item id from 1 to 50 to `tokens(id)`."""
    return write("x.index.json", json.dumps({str(item): tokens(item) for item in range(1, 51)}))


CARD = "data/catalog/semantic_ids.json"
CATALOG = "data/catalog/catalog.json"
ITEMS = "data/catalog/items.parquet"
NESTED = "[" * 100_000
DAMAGED_CARD = "semantic_ids.json is damaged"
REMEDY_CARD = "delete it and run trl-rec tokenize with --overwrite true"
DUAL = "--method dual --overwrite true".split()

FILES = [
    Attack("no dataset", "nowhere is incomplete or not a dataset folder", words=["--dataset", "nowhere"]),
    Attack("a file as dataset", "file is incomplete or not", write("file", ""), ["--dataset", "file"]),
    Attack("card cut", DAMAGED_CARD, cut(CARD)),
    Attack("card empty", REMEDY_CARD, write(CARD, "")),
    Attack("card is a list", DAMAGED_CARD, write(CARD, "[]")),
    Attack("card nested", REMEDY_CARD, write(CARD, NESTED)),
    Attack("card binary", DAMAGED_CARD, write(CARD, b"\x80\x04\xff")),
    Attack("card without levels", DAMAGED_CARD, edit(CARD, levels=...)),
    Attack("card with a number as levels", DAMAGED_CARD, edit(CARD, levels=3)),
    Attack("card without settings", DAMAGED_CARD, edit(CARD, settings=...)),
    Attack("other IDs", "to replace them, set overwrite=True (--overwrite true"),
    Attack("items cut", "items.parquet cannot be read", cut(ITEMS)),
    Attack("items empty", "items.parquet cannot be read", write(ITEMS, "")),
    Attack("items are a pickle", "items.parquet cannot be read", write(ITEMS, pickle.dumps([1] * 99))),
    Attack("user IDs are a text", "user_ids.parquet cannot be read", write("data/catalog/user_ids.parquet", "text")),
    Attack("catalog.json cut", "catalog.json cannot be read", cut(CATALOG)),
    Attack("catalog.json nested", "catalog.json cannot be read", write(CATALOG, NESTED)),
    Attack("catalog.json with a number as surface", "unknown surface 5", edit(CATALOG, surface=5)),
    Attack("catalog.json without fingerprint", "catalog.json cannot be read", edit(CATALOG, fingerprint=...)),
    Attack("export to a folder", "data is a folder; give a file name", words=["--export_index", "data"]),
    Attack("export below a file", "is not a folder", write("file", ""), ["--export_index", "file/x/y.index.json"]),
]


@each(FILES)
def test_damaged_files_are_refused(
    attack: Attack, start_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(start_folder, tmp_path / "data")
    words = "--dataset data --levels 2 --codes 8".split()
    assert_refused(attack, "tokenize", words, tmp_path, capsys)


INDEXES = [
    Attack("no index", "No such file or directory: 'x.index.json'"),
    Attack("index cut", "x.index.json is not JSON", write("x.index.json", '{"1": ["<a')),
    Attack("index empty", "x.index.json is not JSON", write("x.index.json", "")),
    Attack("index nested", "nested too deeply", write("x.index.json", NESTED)),
    Attack("index binary", "x.index.json is not UTF-8", write("x.index.json", b"\x80\x04\xff")),
    Attack("index is a list", "a dict is expected", write("x.index.json", "[1]")),
    Attack("index without an item", "contains no tokens for item", write("x.index.json", '{"1": ["<a>"]}')),
    Attack("index of numbers", "must be a list of strings, not [1]", index(lambda item: [item])),
    Attack("index of texts", "must be a list of strings, not 'ab'", index(lambda item: "ab")),
    Attack("index with empty tokens", "must be a list of strings", index(lambda item: [""])),
    Attack(
        "index with prefixes",
        "x.index.json: the tokens of item '1' are a prefix of the tokens of item '2'; add a token",
        index(lambda item: ["<a>"] * item),
    ),
]


@each(INDEXES)
def test_malformed_indexes_are_refused(
    attack: Attack, start_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(start_folder, tmp_path / "data")
    words = "--dataset data --import_index x.index.json --overwrite true".split()
    assert_refused(attack, "tokenize", words, tmp_path, capsys)


WORDS = [
    Attack("codes 0", "codes must be", words=["--codes", "0"]),
    Attack("codes 1", "codes must be", words=["--codes", "1"]),
    Attack("codes -3", "codes must be", words=["--codes", "-3"]),
    Attack("codes above items", "codes must be", words=["--codes", "51"]),
    Attack("codes is a word", "invalid int value", words=["--codes", "many"]),
    Attack("too few IDs", "fewer distinct IDs than the catalogue has items", words=["--codes", "7"]),
    Attack("levels 0", "levels must be", words=["--levels", "0"]),
    Attack("levels 26", "levels must be", words=["--levels", "26"]),
    Attack("width 0", "width must be", words=["--width", "0"]),
    Attack("window 0", "window must be", words=["--window", "0"]),
    Attack("window -1", "window must be", words=["--window", "-1"]),
    Attack("iterations 0", "iterations must be", words=["--iterations", "0"]),
    Attack("unknown collisions", "collisions must be 'share' or 'extend'", words=["--collisions", "keep"]),
    Attack("unknown method", "choose 'kmeans' or 'dual'", words=["--method", "magic"]),
    Attack("an option of the other method", "'hidden' has no effect", words=["--hidden", "8"]),
    Attack("hidden 0", "hidden must be", words=[*DUAL, "--hidden", "0"]),
    Attack("batch_size 0", "batch_size must be", words=[*DUAL, "--batch_size", "0"]),
    Attack("max_epochs 0", "max_epochs must be", words=[*DUAL, "--max_epochs", "0"]),
    Attack("patience -1", "patience must be", words=[*DUAL, "--patience", "-1"]),
    Attack(
        "without_behaviour 1",
        "without_behaviour must be from 0 to below 1, not 1.0",
        words=[*DUAL, "--without_behaviour", "1"],
    ),
    Attack(
        "without_behaviour NaN",
        "without_behaviour must be from 0 to below 1, not nan",
        words=[*DUAL, "--without_behaviour", "nan"],
    ),
    Attack("unknown signals", "unknown signals 'smell'", words=[*DUAL, "--signals", "smell"]),
    Attack("unknown behaviour", "unknown behaviour 'bad'", words=[*DUAL, "--behaviour", "bad"]),
    Attack("unknown column", "the columns are title, genres", words=[*DUAL, "--item_text", "{nope}"]),
    Attack("brace left open", "cannot be filled", words=[*DUAL, "--item_text", "{title"]),
    Attack("index into a text", "cannot be filled", words=[*DUAL, "--item_text", "{title[x]}"]),
    Attack("a text of 100 GB", "cannot be filled", words=[*DUAL, "--item_text", "{title:>99999999999}"]),
]


@each(WORDS)
def test_impossible_settings_are_refused(
    attack: Attack, start_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(start_folder, tmp_path / "data")
    words = "--dataset data --levels 2 --codes 8 --overwrite true".split()
    assert_refused(attack, "tokenize", words, tmp_path, capsys)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory, start_folder: Path) -> Path:
    """Makes a dataset folder that contains semantic IDs and the trained model that computes them (the item tower)."""
    folder = tmp_path_factory.mktemp("encoder") / "data"
    shutil.copytree(start_folder, folder)
    config = DualIdsConfig(levels=2, codes=8, hidden=8, fused_width=4, code_width=4, max_epochs=1)
    make_dual_ids(load(folder), config, overwrite=True)
    return folder


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights.pop("fuse.0.weight")
    (folder / WEIGHTS).unlink()  # the loaded tensors are mapped from the old file, which must not be overwritten
    save_file(weights, folder / WEIGHTS)


def saved_by_torch(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()  # the loaded tensors are mapped from the old file, which must not be overwritten
    torch.save(weights, folder / WEIGHTS)


TOWER = "data/id_encoder.json"
WEIGHTS = "data/id_encoder.safetensors"
ENCODERS = [
    Attack("description cut", "id_encoder.json is damaged", cut(TOWER)),
    Attack("description empty", "id_encoder.json is damaged", write(TOWER, "")),
    Attack("description is a list", "id_encoder.json is damaged", write(TOWER, "[]")),
    Attack("description nested", "id_encoder.json is damaged", write(TOWER, NESTED)),
    Attack("description without tower", "id_encoder.json is damaged", edit(TOWER, tower=...)),
    Attack("description of other IDs", "does not belong to the semantic IDs", edit(TOWER, fingerprint="x")),
    Attack("another text encoder", "the text encoder 'words' has changed", edit(TOWER, text_encoder_hash="x")),
    Attack("tower with unknown keys", "damaged or belongs to other IDs", edit(TOWER, tower={"size": 3})),
    Attack("tower is a text", "damaged or belongs to other IDs", edit(TOWER, tower="big")),
    Attack("weights cut", "id_encoder.safetensors is damaged", cut(WEIGHTS)),
    Attack("weights empty", "id_encoder.safetensors is damaged", write(WEIGHTS, "")),
    Attack("weights missing", "id_encoder.safetensors is damaged", lambda folder: (folder / WEIGHTS).unlink()),
    Attack("weights are a pickle", "id_encoder.safetensors is damaged", write(WEIGHTS, pickle.dumps([1] * 99))),
    Attack("weights saved by torch", "id_encoder.safetensors is damaged", saved_by_torch),
    Attack("a weight is missing", "id_encoder.safetensors is damaged", without_a_weight),
    Attack("no card", "does not belong to the semantic IDs", lambda folder: (folder / CARD).unlink()),
]


@each(ENCODERS)
def test_a_damaged_item_tower_is_refused(attack: Attack, encoder_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_folder, tmp_path / "data")
    attack.damage(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError) as refused:
        ItemIdEncoder.from_pretrained(tmp_path / "data")
    message = str(refused.value)
    assert attack.says in message and "\n" not in message, message
    assert "tokenize --method dual --overwrite true" in message
    assert contents(tmp_path) == before


DAMAGED_VECTORS = [
    Attack("cut", "", lambda folder: [cut(path.name)(folder) for path in folder.iterdir()]),
    Attack("empty", "", lambda folder: [path.write_bytes(b"") for path in folder.iterdir()]),
    Attack("a pickle", "", lambda folder: [path.write_bytes(pickle.dumps([1] * 99)) for path in folder.iterdir()]),
    Attack("another tensor", "", lambda folder: [save_file({"x": torch.ones(2)}, path) for path in folder.iterdir()]),
]


@each(DAMAGED_VECTORS)
def test_damaged_vectors_are_computed_again(
    attack: Attack, encoder_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(encoder_folder, tmp_path / "data")
    expected = contents(tmp_path)
    attack.damage(tmp_path / "data" / "vectors")
    (tmp_path / "data" / "catalog" / "semantic_ids.json").unlink()
    config = DualIdsConfig(levels=2, codes=8, hidden=8, fused_width=4, code_width=4, max_epochs=1)
    make_dual_ids(load(tmp_path / "data"), config, overwrite=True)
    assert contents(tmp_path) == expected
    assert caplog.text.count("it is computed again") == len(list((tmp_path / "data" / "vectors").iterdir())) > 0
