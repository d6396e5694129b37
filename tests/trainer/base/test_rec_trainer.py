"""Tests `RecTrainerMixin`, which all trainers share: its checkpoints, its limits under FSDP, and what it saves."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import trainer as transformers_trainer

from tests.trainer.runs import losses, make_folder, make_trainer
from trl_rec import BearConfig, BearTrainer, Recommender, load
from trl_rec.models import cpu, load_model
from trl_rec.scripts.options.recipe_files import read_recipe
from trl_rec.trainer import conclude
from trl_rec.trainer.base.saving.checkpoints import newest_complete


PUSHED_PRIOR = {"prior": "transition", "prior_strength": "1.5", "include_prior": True}
SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    make_folder(path)
    return path


@pytest.mark.parametrize(("bf16", "device"), [(True, "cpu"), (False, "cpu"), (True, "meta")])
def test_slow_autocast_on_a_cpu_is_reported(
    bf16: bool, device: str, folder: Path, tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trl_rec")
    monkeypatch.setattr(cpu, "cpu_computes_in", lambda dtype: False)
    cpu._check_speed.cache_clear()
    # Under DeepSpeed and FSDP, the model is still on the CPU when a trainer for a GPU is made.
    monkeypatch.setattr(BearConfig, "device", property(lambda self: torch.device(device)))
    monkeypatch.setattr(BearTrainer, "_move_model_to_device", lambda self, model, device: model)
    make_trainer(folder, tmp_path, bf16=bf16)
    assert ("set bf16 to false" in caplog.text) == (bf16 and device == "cpu")
    cpu._check_speed.cache_clear()


class Died(BaseException):
    """Ends a run as a kill would."""


def die(*arguments: object, **options: object) -> None:
    raise Died


def test_an_older_checkpoint_is_deleted_only_when_the_newer_is_complete(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    trainer = make_trainer(folder, tmp_path, **SAVING)
    remove, told = shutil.rmtree, []

    def watch(path: str, *arguments: object, **options: object) -> None:
        if Path(path).exists():
            told.append((Path(path).name, newest_complete(tmp_path).name))
        remove(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", watch)
    trainer.train()
    assert told == [("checkpoint-2", "checkpoint-4")]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert trainer.args.save_total_limit == 1


def test_a_half_written_checkpoint_does_not_count_as_the_complete_one_of_an_earlier_run(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    make_trainer(folder, tmp_path, max_steps=2, **SAVING).train()
    again = make_trainer(folder, tmp_path, max_steps=2, seed=7, **SAVING)
    monkeypatch.setattr(again, "_save_optimizer_and_scheduler", die)
    with pytest.raises(Died):
        again.train()
    assert newest_complete(tmp_path) is None


def test_only_the_best_and_the_newest_checkpoint_are_kept(folder: Path, tmp_path: Path) -> None:
    options = {
        "max_steps": 8,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        **SAVING,
        "save_total_limit": 2,
    }
    validation = load(folder / "data").validation
    trainer = make_trainer(folder, tmp_path, metric_for_best_model="eval_ndcg@10", eval_dataset=validation, **options)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {best.name, "checkpoint-8"}
    saved = load_file(best / "model.safetensors")
    assert all(
        torch.equal(tensor, saved[name]) for name, tensor in trainer.model.state_dict().items() if name in saved
    )


def test_fsdp_refuses_to_rank_and_says_what_to_do(folder: Path, tmp_path: Path, monkeypatch) -> None:
    trainer = make_trainer(folder, tmp_path)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(
        ValueError, match="evaluation during training does not work under FSDP; .* with trl-rec evaluate"
    ):
        trainer.evaluate(load(folder / "data").validation)
    trainer = make_trainer(
        folder, tmp_path, eval_dataset=load(folder / "data").validation, eval_strategy="steps", eval_steps=2
    )
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match="evaluation during training does not work under FSDP"):
        trainer.train()
    assert trainer.state.global_step == 0  # refused before the first step, not at the first evaluation


def test_fsdp_refuses_to_rank_any_of_several_sets(folder: Path, tmp_path: Path, monkeypatch) -> None:
    validation = load(folder / "data").validation
    rows = make_trainer(folder, tmp_path).train_dataset
    options = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(folder, tmp_path, eval_dataset={"rows": rows, "users": validation}, **options)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match="evaluation during training does not work under FSDP"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_fsdp_refuses_to_choose_a_prior(folder: Path, tmp_path: Path, monkeypatch) -> None:
    trainer = make_trainer(folder, tmp_path, prior="transition")
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match="prior=transition has no effect under FSDP, .* run trl-rec evaluate --prior"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("told", [{"use_reentrant": True}, {"use_reentrant": False, "every_n_layers": 2}])
def test_a_ranking_restores_activation_checkpointing(folder: Path, tmp_path: Path, told: dict) -> None:
    trainer = make_trainer(
        folder, tmp_path, max_steps=1, activation_checkpointing=True, activation_checkpointing_kwargs=dict(told)
    )
    trainer.train()

    def settings() -> list[tuple[bool, dict]]:
        layers = [layer for layer in trainer.model.modules() if "_gradient_checkpointing_func" in vars(layer)]
        return [(layer.gradient_checkpointing, layer._gradient_checkpointing_func.keywords) for layer in layers]

    before = settings()
    trainer.rank(load(folder / "data").validation)
    assert settings() == before and {"use_reentrant": told["use_reentrant"]} in [keywords for _, keywords in before]
    assert ({True, False} if "every_n_layers" in told else {True}) == {enabled for enabled, _ in before}


def test_under_fsdp_a_run_saves_the_model_and_names_the_command_for_an_evaluation(
    folder: Path, tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, saved = make_trainer(folder, tmp_path), []
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    # This process was not launched under FSDP, so there is no plugin to gather the weights.
    monkeypatch.setattr(trainer, "save_model", lambda **options: saved.append(True))
    monkeypatch.setattr(trainer.state, "log_history", [{"loss": 1.5, "step": 1}, {"loss": 1.0, "step": 2}])
    assert conclude(trainer, load(folder / "data"), {}) == {}
    assert saved and "run trl-rec evaluate" in caplog.text
    assert [json.loads(line)["loss"] for line in (tmp_path / "eval.jsonl").read_text().splitlines()] == [1.5, 1.0]
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert (recipe["max_length"], recipe["dataset"]) == (96, str(folder / "data"))


@pytest.mark.parametrize(("strategy", "size"), [("group_by_length", 4), ("batch_rebalance", 2)])
def test_an_order_by_lengths_is_the_same_after_a_resume(
    strategy: str, size: int, folder: Path, tmp_path: Path
) -> None:
    def make(name: str, **saving: Any) -> BearTrainer:
        options = {"train_sampling_strategy": strategy, "targets": "all", "per_device_train_batch_size": size}
        options |= {"gradient_accumulation_steps": 4 // size, "seed": 3}
        # Dropout changes the global random state during each epoch. If the order of the rows were drawn from this
        # state, the resumed run would have another order.
        model = load_model(folder / "model", attention_dropout=0.2)
        return make_trainer(folder, tmp_path / name, model=model, max_steps=14, **options, **saving)

    whole = make("whole", save_strategy="steps", save_steps=11)
    whole.train()
    # Step 11 is in the second epoch.
    shutil.copytree(tmp_path / "whole" / "checkpoint-11", tmp_path / "cut" / "checkpoint-11")
    cut = make("cut")
    cut.train(resume_from_checkpoint=True)
    assert losses(cut) == losses(whole) and len(set(losses(whole))) == 14
    assert cut._get_train_sampler().seed == 3


def test_every_save_after_the_end_of_a_run_contains_the_prior(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """The run is pushed to the Hub before its final evaluation, and again afterwards, with the results in its card."""
    trainer, pushed = make_trainer(folder, tmp_path / "run", **PUSHED_PRIOR), []

    def upload(**options: Any) -> None:
        """Records the prior that the uploaded folder contains."""
        pushed.append(Recommender.from_pretrained(options["folder_path"]).prior)

    hub = SimpleNamespace(upload_folder=upload, list_repo_files=lambda **place: [])
    monkeypatch.setattr(transformers_trainer, "hf_api", lambda: hub)
    monkeypatch.setattr(trainer, "hub_model_id", "me/mine")
    trainer.args.push_to_hub = True
    conclude(trainer, load(folder / "data"), {})
    assert [prior.strength for prior in pushed] == [1.5, 1.5]

    trainer.push_to_hub()
    trainer.args.push_to_hub = False
    trainer.save_model(str(tmp_path / "again"))
    saved = [Recommender.from_pretrained(tmp_path / name).prior for name in ("run", "again")]
    assert [prior.strength for prior in [*pushed, *saved]] == [1.5] * 5
