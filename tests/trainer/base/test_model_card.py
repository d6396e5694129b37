"""Tests the model card of a run: data, results, recipe, citation, and code that runs unchanged."""

import re
from pathlib import Path

import pytest

from tests.trainer.runs import make_folder
from trl_rec.items import ItemCatalog
from trl_rec.scripts import bear
from trl_rec.trainer.base.saving.model_card import ModelCard, Paper, write_model_card


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `trl-rec bear` has written the run `run`."""
    path = tmp_path_factory.mktemp("card")
    make_folder(path)
    words = "--dataset data --surface semantic_id --output_dir run --hidden_size 16 --max_steps 2 --max_length 96"
    words += " --eval_ks 1 5 --eval_recall_at 0 --save_strategy no --use_cpu true --bf16 false"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(path)
        bear.main(words.split())
    return path


def test_the_snippet_runs_unchanged(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "run/README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_the_card_describes_data_results_and_recipe(folder: Path) -> None:
    card = (folder / "run/README.md").read_text()
    headings = ["## Use", "## Data", "## Results", "## Recipe", "## Settings", "## Citation"]
    assert re.findall("^## .*", card, flags=re.MULTILINE) == headings
    assert "- 24 users, 60 items" in card and "split leave_one_out" in card
    assert "the licence of the data (cc0-1.0) allows redistribution of the catalogue" in card
    results = card[card.index("## Results") : card.index("## Recipe")]
    assert all(f"\n{name} " in results for name in ("random", "popularity", "transition", "BEAR"))
    assert "\u00b1" in results and "test split" in results, "no figures of the test split with intervals"
    assert "\nBEAR: " in results, "no sentence that compares BEAR with a baseline"
    assert (folder / "run/recipe.yaml").read_text().rstrip() in card
    assert "eprint = {2601.22925}" in card and "@software{trl_rec," in card


@pytest.mark.parametrize(
    ("license", "sentence"),
    [
        ("cc-by-4.0", "the licence of the data (cc-by-4.0) allows redistribution of the catalogue"),
        ("my own", "the licence of the data (my own) is not known to allow redistribution of the catalogue"),
        (None, "do not redistribute the catalogue"),
    ],
)
def test_the_card_says_whether_the_catalogue_may_be_redistributed(
    license: str | None, sentence: str, folder: Path, tmp_path: Path
) -> None:
    catalog = ItemCatalog.load(folder / "run/catalog")
    catalog = ItemCatalog(catalog.items, license=license)
    write_model_card(tmp_path, ModelCard("m", [], "BEAR", Paper("A paper", "2601.00001"), None, {}, [], catalog))
    assert sentence in (tmp_path / "README.md").read_text()
