"""Tests the rating stage alone and as a part of `trl-rec alro`. In this stage, a model that is trained from scratch
learns to predict ratings."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import TrainerCallback

from tests.programs import load_program
from tests.trainer.alro.alro_runs import DEFAULTS
from trl_rec import AlroTrainer, BearTrainer, RecDataset, prepare
from trl_rec.decoding import RatedPromptFormat
from trl_rec.models import RecModelConfig
from trl_rec.scripts.alro import main
from trl_rec.scripts.options.recipe_files import find_recipe
from trl_rec.trainer import build_ranker, learn_ratings, rating_values


OPTIONS = {
    name: DEFAULTS[name] for name in ("use_cpu", "bf16", "report_to", "disable_tqdm", "activation_checkpointing")
}
RECIPE = {
    **OPTIONS,
    "hidden_size": 16,
    "dropout": 0.1,
    "max_length": 64,
    "num_candidates": 4,
    "eval_ks": [4],
    "max_steps": 3,
}
RECIPE |= {"rating_epochs": 2, "save_strategy": "no"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    path = tmp_path_factory.mktemp("rated") / "data"
    return prepare("toy", path, toy_users=24, toy_items=60, split="leave_last", num_held_out=4).with_surface(
        "item_token"
    )


def learn(dataset: RecDataset, folder: Path, **options) -> dict[str, torch.Tensor]:
    ratings = rating_values(dataset.train)
    model, tokenizer, _ = build_ranker(dataset.catalog, ratings, RecModelConfig(hidden_size=16), max_length=64)
    prompt_format = RatedPromptFormat.for_catalog(dataset.catalog, tokenizer, ratings)
    options = {**OPTIONS, "per_device_train_batch_size": 4, "num_train_epochs": 3, **options}
    return learn_ratings(model, tokenizer, prompt_format, dataset, folder, max_length=32, **options).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class Killed(Exception):
    """Ends a run as a signal would."""


class Kill(TrainerCallback):
    """Kills the run at the end of the third epoch, before the checkpoint of that epoch is written."""

    def on_epoch_end(self, args, state, control, **others) -> None:
        if state.epoch > 2.5:
            raise Killed


def test_a_killed_rating_stage_is_resumed_and_a_finished_one_is_reused(
    dataset: RecDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trl_rec")
    whole = learn(dataset, tmp_path / "whole")
    assert "starting the rating stage" in caplog.text
    make = BearTrainer.__init__
    with monkeypatch.context() as patch:
        patch.setattr(
            BearTrainer, "__init__", lambda self, *args, **kwargs: make(self, *args, **kwargs, callbacks=[Kill()])
        )
        with pytest.raises(Killed):
            learn(dataset, tmp_path / "cut")
    steps = []
    step = BearTrainer.training_step
    monkeypatch.setattr(BearTrainer, "training_step", lambda self, *args: steps.append(1) or step(self, *args))
    assert same(learn(dataset, tmp_path / "cut", resume=True), whole)
    resumed = len(steps)
    assert not list((tmp_path / "cut").glob("checkpoint-*"))
    assert same(learn(dataset, tmp_path / "cut", resume=True), whole)
    assert len(steps) == resumed and "is already finished" in caplog.text

    # The resumed call trained one epoch. With `overwrite`, all three epochs are trained again.
    assert same(learn(dataset, tmp_path / "cut", overwrite=True), whole) and len(steps) == 4 * resumed


def test_the_loss_falls_to_that_of_guessing_among_the_ratings(dataset: RecDataset, tmp_path: Path) -> None:
    learn(dataset, tmp_path, num_train_epochs=8, logging_strategy="epoch")
    losses = [
        entry["loss"]
        for entry in map(json.loads, (tmp_path / "eval.jsonl").read_text().splitlines())
        if "loss" in entry
    ]
    # A model that has only learned which five tokens are ratings has the loss log 5 = 1.61.
    assert losses[-1] < 1.7 < losses[0]


def write(folder: Path, dataset: RecDataset, **options) -> list[str]:
    recipe = {**RECIPE, "dataset": str(dataset.path), "output_dir": str(folder / "run"), **options}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return ["--config", str(folder / "recipe.yaml")]


def test_the_verb_ranks_with_the_model_that_learned_to_rate(
    dataset: RecDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = []
    train = AlroTrainer.train

    def watched(self: AlroTrainer, *args, **kwargs) -> None:
        began.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        train(self, *args, **kwargs)

    monkeypatch.setattr(AlroTrainer, "train", watched)
    main(write(tmp_path, dataset))
    rated = tmp_path / "run" / "rating"
    settings = torch.load(rated / "training_args.bin", weights_only=False)
    assert (settings.num_train_epochs, settings.learning_rate, settings.max_steps) == (2, 3e-3, 3)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["settings"]["rating_epochs"] == 2 and "ALRO" in written["results"]
    begun = (rated / "complete").stat().st_mtime_ns
    main(write(tmp_path, dataset, resume_from_checkpoint=True))
    assert (rated / "complete").stat().st_mtime_ns == begun and same(*began)
    main(write(tmp_path, dataset, rating_epochs=0, output_dir=str(tmp_path / "other")))
    assert not (tmp_path / "other" / "rating").exists() and not same(began[0], began[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the test split has no ratings to rank by"),
        ({"max_length": 12}, r"max_length 12 is too small: list \d+ of the train split takes up to"),
        ({"rating_epochs": -1}, "rating_epochs must be at least 0, not -1"),
        (
            {"model_name_or_path": "some/model"},
            "rating_epochs requires a model trained from scratch; remove rating_epochs",
        ),
    ],
)
def test_invalid_settings_are_refused_before_any_training(
    dataset: RecDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, message: str
) -> None:
    unrated = dataset.test.map(lambda row: {"history_ratings": [], "target_ratings": []})
    monkeypatch.setattr("trl_rec.scripts.alro.load", lambda path: replace(dataset, test=unrated))
    monkeypatch.setattr("transformers.Trainer.train", lambda *args, **kwargs: pytest.fail("the model was trained"))
    with pytest.raises(ValueError, match=message):
        main(write(tmp_path, dataset, **options))


def test_the_recipe_trains_as_the_example_does() -> None:
    example = load_program("examples/alro.py")
    expected = {**example.SHARED, **example.RANKING, **example.ARMS["ALRO"]}
    recipe = yaml.safe_load(find_recipe("alro/ml-100k").read_text())
    shared = {name for name in expected if name in recipe} - {"save_strategy"}
    assert len(shared) >= 12 and {name: recipe[name] for name in shared} == {name: expected[name] for name in shared}
    assert (recipe["rating_epochs"], recipe["rating_learning_rate"], recipe["dropout"]) == (8, 3e-3, 0.3)
