"""Tests that each trainer makes the host wait for a value on the device only a few times per micro-batch. Such a wait
is called a read. The tests run on a CPU, and count the operations that would wait for a GPU (see
`tests/host_reads.py`).

Reads are counted only in the third micro-batch, because tries need extra reads in the first one to fill their caches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import conftest
from tests.host_reads import HostReads, reads_of_steps
from tests.trainer import runs
from tests.trainer.alro import alro_runs
from tests.trainer.blade import blade_runs
from tests.trainer.softmax_dpo import preference_runs
from trl_rec.items import ItemCatalog
from trl_rec.models import make_model, make_tokenizer


SURFACES = ("item_token", "semantic_id", "title")
SMALL = {"hidden_size": 16, "dropout": 0.0, "max_length": 256}
REWARDS = {"ndcg": 1.0, "recall": 0.0, "hit": 0.0, "ild": 0.5, "mgu": 1.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for each kind of surface, with a dataset and a model, and two such folders with rated items."""
    folders = {name: tmp_path_factory.mktemp(name) for name in (*SURFACES, "rated", "rated_item_token")}
    for surface in SURFACES:
        dataset = runs.make_folder(folders[surface])
        if surface != "semantic_id":
            save_surface(dataset.catalog.with_surface(surface), folders[surface])
    alro_runs.make_folder(folders["rated"])
    alro_runs.make_folder(folders["rated_item_token"], "item_token")
    return folders


def save_surface(catalog: ItemCatalog, folder: Path) -> None:
    """Writes a catalogue, and a model that knows the surfaces of the items."""
    catalog.save(folder / "data" / "catalog")
    if catalog.surface == "title":
        tokenizer = conftest.make_tokenizer(catalog.titles * 2)
        model = conftest.make_model("llama", vocab_size=len(tokenizer))
    else:
        tokenizer = make_tokenizer(catalog)
        model = make_model(tokenizer, **SMALL)
    tokenizer.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")


def reads(make: Callable[..., Any], folder: Path, output: Path, **options: Any) -> Counter[str]:
    """Returns the number of reads at each place of the code, counted in the third micro-batch."""
    trainer = make(folder, output, **{"max_steps": 3, "max_length": 200, "logging_steps": 100, **options})
    with reads_of_steps(trainer) as steps:
        trainer.train()
    return steps[-1]


@pytest.mark.parametrize(
    ("surface", "options"),
    [
        ("item_token", {}),
        ("item_token", {"list_length": 2, "eval_ks": [2]}),
        ("item_token", {"sampled_items": 8, "softmax": "legal", "bear_weight": 0.0}),
        ("semantic_id", {}),
        ("semantic_id", {"targets": "all"}),
        ("title", {"targets": "all"}),
    ],
    ids=["items", "lists", "sampled", "codes", "codes-all", "titles-all"],
)
def test_bear(surface: str, options: dict[str, Any], folders: dict[str, Path], tmp_path: Path) -> None:
    assert reads(runs.make_trainer, folders[surface], tmp_path, **options).total() <= 3


@pytest.mark.parametrize(
    ("surface", "normalize"), [("item_token", "catalogue"), ("semantic_id", "vocabulary"), ("title", "catalogue")]
)
def test_softmax_dpo(surface: str, normalize: str, folders: dict[str, Path], tmp_path: Path) -> None:
    assert reads(preference_runs.make_trainer, folders[surface], tmp_path, normalize=normalize).total() <= 4


@pytest.mark.parametrize(("folder", "softmax"), [("rated", "legal"), ("rated_item_token", "vocabulary")])
def test_alro(folder: str, softmax: str, folders: dict[str, Path], tmp_path: Path) -> None:
    assert reads(alro_runs.make_trainer, folders[folder], tmp_path, softmax=softmax).total() <= 4


@pytest.mark.parametrize("surface", SURFACES)
def test_blade(surface: str, folders: dict[str, Path], tmp_path: Path) -> None:
    places = reads(blade_runs.make_trainer, folders[surface], tmp_path, rewards=REWARDS)
    in_rounds = sum(count for place, count in places.items() if place.startswith("decoding/lists/decoder.py"))
    assert places.total() - in_rounds <= 12
    # With titles, each round of sampling reads the sizes of its forward pass. Each round adds at least one token to
    # every incomplete list, and a title has fewer than 20 tokens, so lists of 3 titles take at most 3 * 20 rounds.
    longest = 3 * 20 if surface == "title" else 0
    assert in_rounds <= longest


def test_the_counter_counts_every_kind_of_read() -> None:
    """Each call in `one` is one read. The calls in `none` are not reads, because the host knows the sizes of their
    results."""
    values = torch.tensor([3, 1, 1])
    mask = values > 1
    one: list[Callable[[], object]] = [
        lambda: values[0].item(),
        lambda: bool(mask.any()),
        lambda: int(values.sum()),
        lambda: values.tolist(),
        lambda: values.numpy(),
        lambda: values.cpu(),
        lambda: values.to("cpu"),
        lambda: mask.nonzero(),
        lambda: torch.where(mask),
        lambda: values[mask],
        lambda: values.masked_select(mask),
        lambda: values.unique(),
        lambda: values.unique_consecutive(),
        lambda: values.bincount(),
        lambda: torch.equal(values, values + 1),
        lambda: values.repeat_interleave(values),
    ]
    none: list[Callable[[], object]] = [
        lambda: values.repeat_interleave(values, output_size=5),
        lambda: values.repeat_interleave(2),
        lambda: values[values - 1 - values],
        lambda: values.masked_fill(mask, 0),
        lambda: torch.where(mask, values, 0),
        lambda: values.to(torch.float32),
    ]
    for number, read in [*((1, read) for read in one), *((0, read) for read in none)]:
        with HostReads(everywhere=True) as counted:
            read()
        assert counted.places.total() == number, read
