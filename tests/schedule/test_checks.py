"""Tests that a schedule of preference stages with invalid inputs is refused before a policy is loaded, and before
anything is written or trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import DeepSpeedPlugin

from tests.schedule.loops import make_schedule
from tests.trainer.runs import make_folder
from trl_rec import PreferenceStage, Schedule, load, run_stages
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.schedule import conclude_stages


STAGES = [PreferenceStage("random", num_negatives=3), PreferenceStage("feedback", "hard", max_prompts=5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset and an untrained policy. The tests in this file never load the policy."""
    folder = tmp_path_factory.mktemp("checks")
    make_folder(folder)
    load(folder / "data").catalog.save(folder / "model" / "catalog")
    return folder


def check_refused(message: str, schedule: Schedule, start: Any, stages: list[PreferenceStage] = STAGES) -> None:
    with pytest.raises(ValueError, match=message):
        run_stages(stages, start, schedule)
    assert not schedule.output.exists()


def test_missing_feedback_of_a_later_stage_is_refused(folder: Path, tmp_path: Path) -> None:
    schedule = make_schedule(folder, tmp_path / "out")
    cut = [STAGES[0], PreferenceStage("feedback", "easy", disliked=(-2, -1))]
    check_refused(
        r"stage 2 \(feedback-easy\): no score of the training split is in the range disliked",
        schedule,
        folder / "model",
        cut,
    )
    bare = schedule.dataset.train.remove_columns(["history_ratings", "target_ratings"])
    schedule = replace(schedule, dataset=replace(schedule.dataset, train=bare))
    check_refused(r"stage 2 \(feedback-hard\): .*no ratings", schedule, folder / "model")


@pytest.mark.parametrize("kind", ["fsdp", "zero3"])
def test_sharded_weights_are_refused(kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = make_schedule(folder, tmp_path / "out")
    if kind == "fsdp":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    else:
        plugin = DeepSpeedPlugin(zero_stage=3)
        plugin.set_deepspeed_weakref()  # under DeepSpeed, the trainer's configuration makes this call
    check_refused("does not work under .*use DDP or ZeRO-2", schedule, folder / "model")
    with pytest.raises(ValueError, match="use DDP or ZeRO-2"):
        conclude_stages([], folder / "model", schedule)


def test_a_policy_must_have_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    check_refused("some/policy is not a folder", make_schedule(folder, tmp_path / "out"), "some/policy")
    for output in (folder / "model", folder / "model" / "stages" / "here"):
        with pytest.raises(ValueError, match="output_dir must be neither the folder of the policy to start from"):
            run_stages(STAGES, folder / "model", make_schedule(folder, output))


def test_a_split_without_validation_rows_is_refused(folder: Path, tmp_path: Path) -> None:
    schedule = make_schedule(folder, tmp_path / "out")
    empty = replace(schedule.dataset, validation=schedule.dataset.validation.select([]))
    check_refused(
        "the validation split has no rows to compare stages on", replace(schedule, dataset=empty), folder / "model"
    )


def test_a_policy_of_other_items_is_refused(folder: Path, tmp_path: Path) -> None:
    schedule = make_schedule(folder, tmp_path / "out")
    catalog = schedule.dataset.catalog
    ids = [[f"<a_{item}>"] for item in range(len(catalog))]

    def now(catalog: ItemCatalog) -> Schedule:
        return replace(schedule, dataset=replace(schedule.dataset, catalog=catalog))

    tokenized = catalog.with_surface("semantic_id", Ragged.from_lists(ids, object))
    check_refused("semantic IDs other than those in", now(tokenized), folder / "model")
    check_refused("the surface 'semantic_id', not 'title'", now(catalog.with_surface("title")), folder / "model")
    others = catalog.items.take([*range(1, len(catalog)), 0])
    check_refused("items other than those in", now(replace(catalog, items=others)), folder / "model")
