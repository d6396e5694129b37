"""The licence of the data is recorded in the dataset folder, and decides whether the catalogue may be published."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from tests.data.readers.test_ml_100k import as_recbole
from tests.data.sources import write_table
from trl_rec import ItemCatalog, prepare
from trl_rec.data.card import describe
from trl_rec.data.preparation import licensing, preparing
from trl_rec.files import exclusive
from trl_rec.items.changes import match_items
from trl_rec.items.licenses import allows_redistribution


def recorded(folder: Path) -> list[str | None]:
    """Returns the licences in the dataset's card and in the catalogue's description."""
    return [json.loads((folder / name).read_text()).get("license") for name in ("card.json", "catalog/catalog.json")]


def test_a_licence_is_recorded_even_if_it_is_given_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trl_rec")
    source = write_table(tmp_path / "source")
    dataset = prepare(source, tmp_path / "data")
    assert recorded(tmp_path / "data") == [None, None] and "license" not in dataset.card["settings"]
    dataset = prepare(source, tmp_path / "data", license="CC BY 4.0")
    assert recorded(tmp_path / "data") == ["CC BY 4.0"] * 2 and "recorded the licence CC BY 4.0 in" in caplog.text
    assert "licence of the data: CC BY 4.0" in describe(dataset.card)
    prepare(source, tmp_path / "data")  # a call without a licence keeps the recorded one
    assert recorded(tmp_path / "data") == ["CC BY 4.0"] * 2
    prepare(source, tmp_path / "data", license="mit", overwrite=True)
    catalog = ItemCatalog.load(tmp_path / "data/catalog")
    assert recorded(tmp_path / "data") == ["mit"] * 2 == [catalog.license, catalog.with_surface("item_token").license]


def before_the_lock(monkeypatch: pytest.MonkeyPatch, module: ModuleType, act: Callable[[], object]) -> None:
    """Simulates another process: calls `act` after this process has looked at the folder, but before it has the
    lock."""

    @contextmanager
    def late(folder: Path) -> Iterator[None]:
        monkeypatch.undo()
        act()
        with exclusive(folder):
            yield

    monkeypatch.setattr(module, "exclusive", late)


def test_a_licence_is_recorded_if_another_process_makes_the_dataset_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_table(tmp_path / "source")
    before_the_lock(monkeypatch, preparing, lambda: prepare(source, tmp_path / "data"))
    prepare(source, tmp_path / "data", license="mit")
    assert recorded(tmp_path / "data") == ["mit"] * 2


def test_a_licence_is_recorded_in_a_dataset_that_was_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_table(tmp_path / "source")
    prepare(source, tmp_path / "data")

    def replace_it() -> None:
        prepare(source, tmp_path / "data", min_user_interactions=1, overwrite=True)

    before_the_lock(monkeypatch, licensing, replace_it)
    card = prepare(source, tmp_path / "data", license="mit").card
    assert recorded(tmp_path / "data") == ["mit"] * 2 and card["settings"]["min_user_interactions"] == 1


def test_the_formats_toy_and_ml_100k_imply_the_licence_of_their_dataset(tmp_path: Path) -> None:
    prepare("toy", tmp_path / "toy", toy_users=20, toy_items=50)
    assert recorded(tmp_path / "toy") == ["cc0-1.0"] * 2
    source = as_recbole(tmp_path / "source")
    prepare(source, tmp_path / "ml")
    assert recorded(tmp_path / "ml") == ["non-commercial, no redistribution"] * 2
    with pytest.raises(ValueError, match="the licence of ml-100k is 'non-commercial, no redistribution', not 'mit'"):
        prepare(source, tmp_path / "other", license="mit")
    with pytest.raises(ValueError, match="license must be a non-empty string, not ' '"):
        prepare("toy", tmp_path / "other", license=" ")


@pytest.mark.parametrize(
    ("license", "allows"),
    [
        ("cc-by-4.0", True),
        ("CC BY-NC 4.0", True),
        ("cc0-1.0", True),
        ("cc-by-nd-4.0", False),
        ("non-commercial, no redistribution", False),
        ("other", False),
        ("", False),
        (None, False),
    ],
)
def test_only_known_licences_allow_redistribution(license: str | None, allows: bool) -> None:
    assert allows_redistribution(license) == allows


def test_the_licence_is_unknown_if_removed_items_have_another_licence(tmp_path: Path) -> None:
    catalog = prepare("toy", tmp_path / "toy", toy_users=20, toy_items=50).catalog
    fewer = ItemCatalog(catalog.items.slice(0, 10), license="mit")
    # The joint catalogue also contains the items that `fewer` lacks. Their licence is cc0-1.0, not mit.
    assert match_items(catalog, fewer).catalog.license is None
    # `catalog` has all items of `fewer`, so the licence of `catalog` applies to all items.
    assert match_items(fewer, catalog).catalog.license == "cc0-1.0"
