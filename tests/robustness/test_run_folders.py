"""Tests that run folders are refused if files are damaged, or if the model was not trained with the catalogue.
Also tests that titles are printed without control characters."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from tests.robustness.attacks import Attack, assert_refused, each
from trl_rec import ItemCatalog, Recommender
from trl_rec.decoding.candidates import CandidateRanker, save_ranker
from trl_rec.decoding.candidates.prompts import rated_tokens
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.evaluation import readable_lists
from trl_rec.models import make_model, make_tokenizer
from trl_rec.printing import printable, printable_lines


IDS = ["a", "b", "c"]
HOSTILE = "\x1b[2J\x1b]0;owned\x07evil\r\n\u202ename"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a run folder of a randomly initialised model with one token per item."""
    folder = tmp_path_factory.mktemp("world")
    titles = ["A", HOSTILE, "C"]
    catalog = ItemCatalog(pa.table({"item_id": IDS, "title": titles}), surface="item_token")
    tokenizer = make_tokenizer(catalog)
    tokenizer.save_pretrained(folder / "run")
    make_model(tokenizer, hidden_size=16).save_pretrained(folder / "run")
    ranking = {"max_length": 64, "renormalize": True, "length_penalty": 0.0, "num_beams": 3}
    save_recommender(folder / "run", catalog, {"prompt": {"prompt_head": None, "list_length": None}, **ranking})
    return folder


def with_surface(surface: str) -> Callable[[Path], None]:
    """Returns a function that changes the surface of the run folder's catalogue. With the surface "title", the effect
    is the same as if a user replaced this catalogue with that of the dataset."""
    return lambda folder: ItemCatalog.load(folder / "run/catalog").with_surface(surface).save(folder / "run/catalog")


def other_items(folder: Path) -> None:
    """Writes a catalogue whose items have the same ids but other titles, and are therefore other items."""
    ItemCatalog(pa.table({"item_id": IDS, "title": ["x", "y", "z"]}), surface="item_token").save(
        folder / "run/catalog"
    )


def changed(**values: object) -> Callable[[Path], None]:
    """Returns a function that changes keys of `recommender.json`. A value of None removes the key."""

    def change(folder: Path) -> None:
        path = folder / "run/recommender.json"
        settings = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))

    return change


def old_with_titles(folder: Path) -> None:
    """Changes the surface of the catalogue, and removes the key `catalog` from `recommender.json`. Earlier versions
    did not write this key."""
    changed(catalog=None)(folder)
    with_surface("title")(folder)


def text(name: str, content: str) -> Callable[[Path], None]:
    """Returns a function that replaces a file of the run folder."""

    def write(folder: Path) -> None:
        (folder / "run" / name).write_text(content)

    return write


SETTINGS = "recommender.json"
RUN_FOLDERS = [
    Attack(
        "catalogue of the dataset",
        "the surface 'title', but the model was trained with 'item_token'",
        with_surface("title"),
    ),
    Attack(
        "catalogue of the dataset in an old folder",
        "the surface 'title', but the model was trained with 'item_token'",
        old_with_titles,
    ),
    Attack("other items", "does not contain the items that the model was trained with", other_items),
    Attack("no settings", "is not a run folder", lambda folder: (folder / "run" / SETTINGS).unlink()),
    Attack("empty settings", "recommender.json is damaged and cannot be read", text(SETTINGS, "")),
    Attack("truncated settings", "recommender.json is damaged and cannot be read", text(SETTINGS, '{"prompt": {')),
    Attack("deep settings", "recommender.json is damaged and cannot be read", text(SETTINGS, "[" * 100000)),
    Attack("settings are a list", "does not contain the settings of a run", text(SETTINGS, "[]")),
    Attack("no prompt", "does not contain the settings of a run", changed(prompt=None)),
    Attack("letters in a prompt", "the prompt contains the unknown key 'letters'", changed(prompt={"letters": True})),
    Attack("prompt is a text", "does not contain the settings of a run", changed(prompt="x")),
    Attack("head is a number", "recommender.json: head must be a string, not 3", changed(prompt={"head": 3})),
    Attack("no beams", "recommender.json has no key 'num_beams'", changed(num_beams=None)),
    Attack("negative beams", "recommender.json: num_beams must be at least 1, not -1", changed(num_beams=-1)),
    Attack("beams are a word", "num_beams must be a whole number, not 'x'", changed(num_beams="x")),
    Attack("penalty is NaN", "length_penalty must be a finite number, not nan", changed(length_penalty=float("nan"))),
    Attack("renormalize is a word", "renormalize must be true or false, not 'x'", changed(renormalize="x")),
    Attack("record is a text", "catalog is 'x', which is not a mapping", changed(catalog="x")),
    Attack("no catalogue", "catalog.json is missing", lambda folder: shutil.rmtree(folder / "run/catalog")),
    Attack("empty catalogue", "catalog.json cannot be read", text("catalog/catalog.json", "")),
    Attack("truncated items", "items.parquet cannot be read", text("catalog/items.parquet", "PAR1")),
    Attack("empty weights", "the model of run cannot be loaded", text("model.safetensors", "")),
    Attack("truncated weights", "the model of run cannot be loaded", text("model.safetensors", "x" * 100)),
    Attack("empty configuration", "run cannot be loaded", text("config.json", "")),
    Attack("empty tokenizer", "the tokenizer of run cannot be loaded", text("tokenizer.json", "")),
    Attack(
        "truncated tokenizer", "the tokenizer of run cannot be loaded", text("tokenizer.json", '{"version": "1.0"')
    ),
    Attack("other JSON as tokenizer", "the tokenizer of run cannot be loaded", text("tokenizer.json", "{}")),
    Attack("no model", "there is no folder nowhere", words=["--model", "nowhere"]),
    Attack("unknown title", "no item has the title 'x'", words=["--titles", "x"]),
    Attack("nothing to recommend", "k must be at least 1, not 0", words=["--k", "0"]),
    Attack("user and titles", "give one of --user, --titles, --all_users", words=["--user", "3"]),
]


@each(RUN_FOLDERS)
def test_a_damaged_run_folder_is_refused(
    attack: Attack, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world, tmp_path / "copy")
    assert_refused(attack, "recommend", ["--model", "run", "--titles", "A"], tmp_path / "copy", capsys)


def test_the_remedy_for_a_wrong_surface_works(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "copy")
    before = Recommender.from_pretrained(tmp_path / "copy/run").recommend(["a"], 2)
    with_surface("title")(tmp_path / "copy")
    with pytest.raises(ValueError, match="trained with 'item_token'") as refused:
        Recommender.from_pretrained(tmp_path / "copy/run")
    remedy = str(refused.value).split("or run ")[1].removesuffix(" in Python")
    eval(remedy, {"ItemCatalog": ItemCatalog})
    assert Recommender.from_pretrained(tmp_path / "copy/run").recommend(["a"], 2) == before


def test_a_folder_without_a_record_of_its_catalogue_is_loaded(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "copy")
    before = Recommender.from_pretrained(tmp_path / "copy/run").recommend(["a"], 2)
    changed(catalog=None)(tmp_path / "copy")
    assert Recommender.from_pretrained(tmp_path / "copy/run").recommend(["a"], 2) == before


def test_titles_are_printed_without_control_characters(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trl_rec.scripts.recommend import main

    monkeypatch.chdir(world)
    main(["--model", "run", "--titles", "A"])
    printed = capsys.readouterr().out
    assert "evil" in printed and printed.replace("\n", "").isprintable()


def test_printable_text_has_one_line() -> None:
    assert printable("caf\u00e9 \u4f60 \U0001f600") == "caf\u00e9 \u4f60 \U0001f600"
    assert printable(HOSTILE) == "\ufffd[2J\ufffd]0;owned\ufffdevil  \ufffdname"
    assert printable_lines("a\x1b\nb\tc") == "a\ufffd\nb c"


def test_lists_end_at_the_first_missing_rank() -> None:
    catalog = ItemCatalog(pa.table({"item_id": IDS, "title": ["A", HOSTILE, "C"]}))
    rows = {"history": [[0]], "targets": [[2]]}
    split = Dataset(pa.table({name: pa.array(values, pa.list_(pa.int32())) for name, values in rows.items()}))
    text = readable_lists(np.array([[1, -1, -1]]), split, catalog)  # shows at most ten rows; the split has one
    assert text.replace("\n", "").isprintable()
    assert text.count("\n") == 2 and text.endswith("next items: C")


@pytest.fixture(scope="module")
def ranker_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a run folder of a randomly initialised model that orders rated candidates."""
    folder = tmp_path_factory.mktemp("ranker")
    catalog = ItemCatalog(pa.table({"item_id": IDS, "title": ["A", "B", "C"]}), surface="item_token")
    tokenizer = make_tokenizer(catalog)
    tokenizer.add_tokens(rated_tokens(catalog, [1.0, 5.0], letters=False))
    tokenizer.save_pretrained(folder / "run")
    make_model(tokenizer, hidden_size=16).save_pretrained(folder / "run")
    settings = {"ratings": [1.0, 5.0], "max_length": 64, "max_history": None, "single_pass": True}
    save_ranker(folder / "run", catalog, {"prompt": {"prompt_head": None, "letters": False}, **settings})
    return folder


def ranker_with(**values: object) -> Callable[[Path], None]:
    """Returns a function that changes keys of `ranker.json`."""

    def change(folder: Path) -> None:
        path = folder / "run/ranker.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def ranker_without(key: str) -> Callable[[Path], None]:
    """Returns a function that removes a key of `ranker.json`."""

    def remove(folder: Path) -> None:
        path = folder / "run/ranker.json"
        settings = json.loads(path.read_text())
        del settings[key]
        path.write_text(json.dumps(settings))

    return remove


RANKER = "ranker.json"
RANKER_FOLDERS = [
    Attack("missing", "is not a run folder of AlroTrainer", lambda folder: (folder / "run" / RANKER).unlink()),
    Attack("empty", "ranker.json is damaged and cannot be read", text(RANKER, "")),
    Attack("truncated", "ranker.json is damaged and cannot be read", text(RANKER, '{"prompt": {')),
    Attack("deep", "ranker.json is damaged and cannot be read", text(RANKER, "[" * 100000)),
    Attack("a list", "ranker.json does not contain the settings of a run", text(RANKER, "[]")),
    Attack("no prompt", "ranker.json does not contain the settings of a run", ranker_without("prompt")),
    Attack("prompt is a text", "ranker.json does not contain the settings of a run", ranker_with(prompt="x")),
    Attack("head is a number", "ranker.json: head must be a string, not 3", ranker_with(prompt={"head": 3})),
    Attack("letters are a word", "letters must be true or false, not 'x'", ranker_with(prompt={"letters": "x"})),
    Attack("no ratings", "ranker.json has no key 'ratings'", ranker_without("ratings")),
    Attack("ratings are a text", "ratings must be a list of numbers, not 'x'", ranker_with(ratings="x")),
    Attack("ratings are empty", "ratings must be a list of numbers, not []", ranker_with(ratings=[])),
    Attack("a rating is a word", "ratings must be a number, not 'x'", ranker_with(ratings=[1.0, "x"])),
    Attack("a rating is NaN", "ratings must be a finite number, not nan", ranker_with(ratings=[float("nan")])),
    Attack("other ratings", "<", ranker_with(ratings=[1.0, 2.0, 3.0])),
    Attack("no length", "ranker.json has no key 'max_length'", ranker_without("max_length")),
    Attack("negative length", "max_length must be at least 1, not -1", ranker_with(max_length=-1)),
    Attack("history is a word", "max_history must be a whole number, not 'x'", ranker_with(max_history="x")),
    Attack("single_pass is a word", "single_pass must be true or false, not 'x'", ranker_with(single_pass="x")),
    Attack(
        "unknown prompt key",
        "ranker.json: the prompt contains the unknown key 'unknown'; restore",
        ranker_with(prompt={"unknown": 1}),
    ),
    Attack("record is a text", "catalog is 'x', which is not a mapping", ranker_with(catalog="x")),
    Attack("catalogue of the dataset", "the surface 'title', but the model was trained with", with_surface("title")),
    Attack("other items", "does not contain the items that the model was trained with", other_items),
    Attack("no catalogue", "catalog.json is missing", lambda folder: shutil.rmtree(folder / "run/catalog")),
]


@each(RANKER_FOLDERS)
def test_a_damaged_ranker_is_refused(attack: Attack, ranker_world: Path, tmp_path: Path) -> None:
    shutil.copytree(ranker_world, tmp_path / "copy")
    attack.damage(tmp_path / "copy")
    with pytest.raises(ValueError, match=re.escape(attack.says)):
        CandidateRanker.from_pretrained(tmp_path / "copy/run")
