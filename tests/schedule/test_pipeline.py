"""Runs all parts of Align³GR on toy data. A run that is interrupted in any part, and started again, must end with the
semantic IDs and weights of an uninterrupted run."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from tests.trainer.runs import QUIET
from trl_rec import (
    BearConfig,
    BearTrainer,
    PreferenceStage,
    RecDataset,
    Recommender,
    Schedule,
    SoftmaxDPOConfig,
    SoftmaxDPOTrainer,
    load,
    prepare,
)
from trl_rec.models import RecModelConfig
from trl_rec.schedule import align, check_pipeline, give_ids, learn_supervised
from trl_rec.semantic_ids import DualIdsConfig


SMALL: dict[str, Any] = {
    "codes": 8,
    "code_width": 8,
    "behaviour_width": 8,
    "fused_width": 16,
    "hidden": 16,
    "max_epochs": 2,
}
IDS = DualIdsConfig(**SMALL, collisions="extend")
SHARED: dict[str, Any] = {
    **QUIET,
    "prompt_head": "{user}",
    "max_length": 96,
    "activation_checkpointing": False,
    "save_strategy": "steps",
    "save_steps": 2,
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "eval_ks": [5],
}
STAGES = [
    PreferenceStage("self_play", num_beams=8, max_prompts=24),
    PreferenceStage("feedback", "hard", max_prompts=24),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("toy", tmp_path_factory.mktemp("toy") / "data", toy_users=30, toy_items=60).path


def run(folder: Path) -> RecDataset:
    """Makes the IDs, trains the supervised policy and runs the stages, all in a folder with a dataset. Returns the
    dataset with the IDs."""
    dataset = give_ids(load(folder / "data"), IDS)
    tasks = {"next_item": 1.0, "item_to_id": 0.5, "profile_to_user": 0.5}
    config = BearConfig(str(folder / "run" / "supervised"), bear_weight=0, targets="all", tasks=tasks, **SHARED)
    start = learn_supervised(dataset, config, RecModelConfig(hidden_size=16, dropout=0.1))
    config = SoftmaxDPOConfig(str(folder / "run"), normalize="catalogue", learning_rate=1e-3, **SHARED)
    align(STAGES, start, Schedule(dataset, config, keep="last"))
    return dataset


def results_of(folder: Path) -> tuple[list[str], list[str], dict[str, torch.Tensor]]:
    """Returns the IDs of items and users, and the weights of the last policy."""
    catalog = load(folder / "data").catalog
    return (
        catalog.with_surface("semantic_id").surfaces,
        catalog.user_surfaces,
        load_file(folder / "run" / "model.safetensors"),
    )


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(source, folder / "data")
    run(folder)
    return folder


def failing_at(kind: type, name: str, call: int) -> tuple[type, str, Callable[..., Any]]:
    """Returns arguments of `monkeypatch.setattr` that make a method fail at its call number `call`."""
    method = getattr(kind, name)
    calls = []

    def failing(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return method(self, *arguments, **options)

    return kind, name, failing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "call"),
    [
        pytest.param("trl_rec.semantic_ids.dual.training.DualTraining", "_start_codebooks", 1, id="IDs"),
        pytest.param(BearTrainer, "compute_loss", 4, id="supervised"),
        pytest.param(BearTrainer, "save_model", 1, id="supervised, while it is saved", marks=pytest.mark.long),
        pytest.param(SoftmaxDPOTrainer, "compute_loss", 3, id="first stage", marks=pytest.mark.long),
        pytest.param(SoftmaxDPOTrainer, "compute_loss", 8, id="second stage"),
    ],
)
def test_an_interrupted_run_ends_with_the_same_ids_and_weights(
    kind: Any, name: str, call: int, source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(source, tmp_path / "data")
    if isinstance(kind, str):
        module, _, attribute = kind.rpartition(".")
        kind = getattr(__import__(module, fromlist=[attribute]), attribute)
    with monkeypatch.context() as patched:
        patched.setattr(*failing_at(kind, name, call))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    run(tmp_path)
    items, users, weights = results_of(whole)
    assert results_of(tmp_path)[:2] == (items, users)
    found = results_of(tmp_path)[2]
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.slow
def test_a_finished_run_trains_nothing_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = results_of(whole)
    for kind in (BearTrainer, SoftmaxDPOTrainer):
        monkeypatch.setattr(kind, "train", lambda *given, **options: 1 / 0)
    run(whole)
    assert results_of(whole)[:2] == before[:2]


@pytest.mark.slow
def test_the_run_folder_recommends_to_named_users(whole: Path) -> None:
    dataset = load(whole / "data")
    recommender = Recommender.from_pretrained(whole / "run")
    history = dataset.history_of("u3") if "u3" in dataset.users["user_id"].to_pylist() else dataset.catalog.ids[:3]
    known = recommender.recommend(history, k=5, user=3)
    assert len(known) == 5 and {one.item_id for one in known}.isdisjoint(history)
    with pytest.raises(ValueError, match="no user was given"):
        recommender.recommend(history, k=5)


@pytest.mark.slow
def test_a_policy_with_other_ids_of_users_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    dataset = load(tmp_path / "data").with_surface("semantic_id")
    users = dataset.catalog.user_ids
    assert users is not None
    turned = type(users)(users.values.reshape(len(users), -1)[::-1].ravel(), users.offsets)
    dataset.catalog.with_surface("semantic_id", user_ids=turned).save(tmp_path / "data" / "catalog")
    config = SoftmaxDPOConfig(str(tmp_path / "run"), normalize="catalogue", **SHARED)
    schedule = Schedule(load(tmp_path / "data").with_surface("semantic_id"), config, keep="last")
    with pytest.raises(ValueError, match="semantic IDs other than those in"):
        align(STAGES, whole / "run" / "supervised", schedule)


def test_a_policy_trained_with_other_settings_is_refused(source: Path, tmp_path: Path) -> None:
    """An existing policy is refused if its options, its model size or the texts of its tasks differ from those of the
    new call."""
    shutil.copytree(source, tmp_path / "data")
    dataset = give_ids(load(tmp_path / "data"), IDS)
    options = {**SHARED, "bear_weight": 0, "targets": "all", "max_steps": 1, "save_strategy": "no"}
    size = RecModelConfig(hidden_size=16)
    learn_supervised(dataset, BearConfig(str(tmp_path / "policy"), **options), size)
    with pytest.raises(ValueError, match="differs in learning_rate"):
        learn_supervised(dataset, BearConfig(str(tmp_path / "policy"), learning_rate=0.5, **options), size)
    with pytest.raises(ValueError, match="differs in model option hidden_size"):
        learn_supervised(dataset, BearConfig(str(tmp_path / "policy"), **options), RecModelConfig(hidden_size=32))
    with_tasks = {**options, "tasks": {"next_item": 1.0, "profile_to_user": 0.5}}
    learn_supervised(dataset, BearConfig(str(tmp_path / "tasks"), **with_tasks), size)
    towns = pa.array([f"Town{user}" for user in range(dataset.users.num_rows)])
    moved = replace(dataset, users=dataset.users.append_column("town", towns))
    with pytest.raises(ValueError, match="differs in texts of the tasks"):
        learn_supervised(moved, BearConfig(str(tmp_path / "tasks"), **with_tasks), size)


@pytest.mark.parametrize("users", [True, False])
def test_several_processes_load_ids_but_do_not_make_them(
    users: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(source, tmp_path / "data")
    config = replace(IDS, users=users)
    with monkeypatch.context() as patched:
        patched.setattr(PartialState(), "num_processes", 2)
        with pytest.raises(ValueError, match="only a single process can make semantic IDs"):
            give_ids(load(tmp_path / "data"), config)
    made = give_ids(load(tmp_path / "data"), config)
    monkeypatch.setattr(PartialState(), "num_processes", 2)
    assert give_ids(load(tmp_path / "data"), config).catalog.surfaces == made.catalog.surfaces
    with pytest.raises(ValueError, match="only a single process can make semantic IDs"):
        give_ids(load(tmp_path / "data"), replace(config, seed=1), overwrite=True)


def test_stages_must_use_the_prompts_and_the_softmax_of_the_supervised_training(source: Path, tmp_path: Path) -> None:
    """If the stages ranked with a different softmax, or did not name the users in prompts, the policy would look worse
    than it is."""
    supervised = BearConfig(str(tmp_path / "policy"), **SHARED)
    for options, message in (
        ({}, "ranks items with a softmax over legal tokens; set normalize to 'catalogue'"),
        (
            {"normalize": "catalogue", "prompt_head": None},
            "uses prompt_head='{user}' in its prompts, but the stages use None",
        ),
    ):
        schedule = Schedule(
            load(source), SoftmaxDPOConfig(str(tmp_path / "run"), **{**SHARED, **options}), keep="last"
        )
        with pytest.raises(ValueError, match=message):
            check_pipeline(STAGES, schedule, supervised)
    check_pipeline(
        STAGES, replace(schedule, config=SoftmaxDPOConfig(str(tmp_path), normalize="catalogue", **SHARED)), supervised
    )


def test_stages_without_ratings_are_refused_before_any_part_runs(source: Path, tmp_path: Path) -> None:
    dataset = load(source)
    empty = [[] for _ in range(len(dataset.train))]
    unrated = dataset.train.remove_columns("target_ratings").add_column("target_ratings", empty)
    schedule = Schedule(replace(dataset, train=unrated), SoftmaxDPOConfig(str(tmp_path), **SHARED), keep="last")
    with pytest.raises(ValueError, match=r"^stage \d \(.*\): .*rating"):
        check_pipeline(STAGES, schedule)


@pytest.mark.parametrize("given", [False, "false", "runs/x/checkpoint-3"])
def test_stages_always_resume(given: bool | str, source: Path, tmp_path: Path) -> None:
    config = BearConfig(str(tmp_path / "policy"), resume_from_checkpoint=given, **SHARED)
    schedule = Schedule(load(source), SoftmaxDPOConfig(str(tmp_path / "run"), **SHARED), keep="last")
    with pytest.raises(ValueError, match=f"resume_from_checkpoint: {given} has no effect with stages"):
        check_pipeline(STAGES, schedule, config)
