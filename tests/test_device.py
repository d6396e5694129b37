"""Tests the GPU benchmark with tiny shapes on a CPU, and the tables that `docs/write_device.py` makes from the
benchmark's results."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.programs import load_program


ROOT = Path(__file__).parents[1]
MEASURED = ["bear/office-llama-3.2-1b-qlora", "align3gr/office-llama-3.2-1b-qlora"]

write_device = load_program("docs/write_device.py")


@pytest.fixture(scope="module")
def device() -> Any:
    """The benchmark as a module. Its folder must be in `sys.path`, because it imports other files of this folder."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield load_program("benchmarks/device.py")
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.slow
def test_a_trainer_is_measured_beside_the_trainer_of_trl(device: ModuleType, tmp_path: Path) -> None:
    world = device.World(tmp_path / "world", torch.device("cpu"), is_tiny=True)
    bench = device.Bench(world, tmp_path / "trainers", 3)
    _, _, ours, theirs = device.PAIRS[0]
    for build in (ours, theirs):
        figures = device.measure_trainer(bench, build)
        assert figures["seconds"] > 0 and 0 < figures["reads"] < 100
        assert figures["peak_bytes"] is None and figures["waits"] is None  # measured only on a GPU


@pytest.mark.long
def test_everything_is_measured_with_tiny_shapes(device: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "device.json"
    figures = device.measure(tmp_path / "world", output, 5, MEASURED, is_tiny=True)
    assert json.loads(output.read_text()) == figures
    assert figures["left_out"] == []

    # Every trainer took its steps, and the host read fewer than a hundred numbers from the device per step.
    assert {pair["ours"]: pair["theirs"] for pair in figures["trainers"]} == write_device.PAIRS
    for pair in figures["trainers"]:
        for own in (pair["figures"], pair["their_figures"]):
            assert own["seconds"] > 0 and 0 <= own["reads"] < 100
    assert figures["decoder"]["num_beams"] == 50
    assert 0 < figures["decoder"]["overhead_seconds"] < figures["decoder"]["seconds"]

    # The second recipe starts from the model that the first recipe has trained.
    assert [recipe["name"] for recipe in figures["recipes"]] == MEASURED
    assert all(recipe["fits"] == 16 and recipe["seconds"] > 0 for recipe in figures["recipes"])
    table = {row[0]: row for row in write_device.recipes(figures)}
    assert table[f"`{MEASURED[0]}`"][3:5] == ["yes", "yes"]
    assert table["`bear/office-qwen2.5-1.5b-qlora`"][2:] == ["not measured"] * 4


def test_parts_without_enough_time_or_memory_are_listed_as_not_measured(
    device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = device.measure(tmp_path, tmp_path / "device.json", -1, None, is_tiny=True)
    names = {one["name"] for one in figures["left_out"] if one["reason"] == "time"}
    assert {
        *device.consumer_recipes(),
        "decoder",
        "BearTrainer",
        "DPOTrainer (compared with SoftmaxDPOTrainer)",
    } <= names
    assert {"not measured"} == {cell for row in write_device.trainers(figures)[1:] for cell in row[1:]}

    tried = []
    monkeypatch.setattr(device, "run_recipe", lambda name, world, cap: tried.append(cap))
    found = device.measure_recipe(MEASURED[0], None)
    assert tried == [16, 24]
    table = {row[0]: row for row in write_device.recipes({"recipes": [found]})}
    assert table[f"`{MEASURED[0]}`"][2:] == ["more than 24 GB", "no", "no", "not measured"]


def test_running_out_of_memory_is_not_an_error(
    device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_it(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(device, "import_module", lambda name: type("Script", (), {"main": staticmethod(raise_it)}))
    world = device.World(tmp_path, torch.device("cpu"), is_tiny=True)
    assert device.run_recipe(MEASURED[0], world, 16) is None


def test_a_recipe_comes_after_the_recipe_that_it_starts_from(device: ModuleType) -> None:
    names = device.consumer_recipes()
    made = [device.settings_of(name)["output_dir"] for name in names]
    for place, name in enumerate(names):
        model = device.settings_of(name)["model_name_or_path"]
        assert not model.startswith("runs/") or model in made[:place]
    assert set(names) == set(write_device.consumer_recipes())


def test_the_pages_contain_what_their_command_writes() -> None:
    for page in write_device.PAGES:
        text = page.read_text(encoding="utf-8")
        assert write_device.written(text, write_device.kept()) == text, "run python docs/write_device.py"


def test_figures_are_written_as_table_cells() -> None:
    own = {"seconds": 0.5, "peak_bytes": 7_300_000_000, "reads": 3, "waits": 9}
    other = {**own, "seconds": 1.25, "waits": 40}
    pair = {"ours": "BearTrainer", "theirs": "SFTTrainer", "figures": own, "their_figures": other}
    rows = write_device.trainers({"trainers": [pair]})
    assert rows[1] == ["`BearTrainer`", "0.5", "1.00", "7.3 GB", "3", "9"]
    assert rows[2] == ["TRL's `SFTTrainer`", "1.25", "2.50", "7.3 GB", "3", "40"]
    recipe = {"name": MEASURED[0], "fits": 24, "batches_per_step": 4, "seconds": 0.5, "peak_bytes": 17_000_000_000}
    assert ["17.0 GB", "no", "yes", "2"] in [row[2:] for row in write_device.recipes({"recipes": [recipe]})]
