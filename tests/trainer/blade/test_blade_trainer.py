"""Tests `BladeTrainer`: its first step, its training, its evaluations, and runs that are resumed."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trl import DPOTrainer

from tests.conftest import make_model as make_family
from tests.conftest import make_tokenizer as make_bpe
from tests.trainer.blade.blade_runs import NUM_PROMPTS, drawn, first_batch, logged, make_trainer, other_model
from tests.trainer.runs import make_folder
from trl_rec import RecDataset, Recommender, load
from trl_rec.data import build_list_rows
from trl_rec.data.prompt_texts import TITLE_LIST_TAIL, TITLE_PROMPT
from trl_rec.evaluation.rewards import ListBatch
from trl_rec.models import load_model, load_tokenizer, make_model, make_tokenizer
from trl_rec.trainer import BladeTrainer


ALL = {"per_device_train_batch_size": NUM_PROMPTS}  # every row in one batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists")
    make_folder(path)
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> RecDataset:
    return load(folder / "data")


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_close(model: torch.nn.Module, expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=tolerance), name


def assert_same_steps(one: BladeTrainer, other: BladeTrainer) -> None:
    """Asserts that two runs logged the same values. The loss is not compared: if each rollout is used once, the loss
    is 0, apart from rounding errors."""
    for name in ("reward", "kl", "blade/quantile", "blade/target_std"):
        assert logged(one, name) == pytest.approx(logged(other, name), abs=1e-5), name
    assert logged(one, "grad_norm") == pytest.approx(logged(other, "grad_norm"), rel=1e-4)


def unalike(batch: ListBatch) -> np.ndarray:
    """Returns a different reward for almost every list."""
    return (np.sin(np.array([3.0, 5.0, 7.0]) * batch.lists) * [1.0, 0.7, 0.4]).sum(-1)


def low(batch: ListBatch) -> np.ndarray:
    return -batch.lists.mean(-1)


@pytest.mark.parametrize("bf16", [False, True])
def test_before_the_first_step_the_policy_equals_its_reference(folder: Path, tmp_path: Path, bf16: bool) -> None:
    options = {
        "rewards": {"unalike": 1.0},
        "reward_functions": {"unalike": unalike},
        "num_generations": 32,
        "bf16": bf16,
    }
    trainer = make_trainer(folder, tmp_path, **options, **ALL, num_references=64, max_steps=1)
    trainer.train()
    told = {name: logged(trainer, name)[0] for name in ("kl", "blade/kl_k3", "blade/ratio", "blade/clipped")}
    assert list(told.values()) == [0.0, 0.0, 1.0, 0.0] and logged(trainer, "loss")[0] == pytest.approx(0, abs=1e-6)
    assert logged(trainer, "blade/quantile")[0] == pytest.approx(0.5, abs=0.02)
    # A rollout is as likely to be the best list as each of the 64 reference lists.
    assert logged(trainer, "blade/saturated")[0] == pytest.approx(1 / 65, abs=0.01)
    assert logged(trainer, "blade/tied_pairs")[0] < 0.02 and logged(trainer, "blade/logps")[0] < -9


def test_the_default_reference_equals_the_loaded_policy(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, model=str(folder / "model"))
    rollouts = drawn(trainer, first_batch(trainer))
    assert torch.equal(rollouts.ref_logps, rollouts.old_logps)
    # The weights of this policy were changed after loading. The reference is a copy of the changed weights.
    changed = make_trainer(folder, tmp_path, model=other_model(folder))
    rollouts = drawn(changed, first_batch(changed))
    assert torch.equal(rollouts.ref_logps, rollouts.old_logps)


def test_dropout_does_not_make_policy_and_reference_differ(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder / "model", attention_dropout=0.5, resid_pdrop=0.5).train()
    trainer = make_trainer(folder, tmp_path, model=model, max_steps=1, num_generations=4)
    trainer.train()
    assert logged(trainer, "kl") == [0.0] and logged(trainer, "blade/ratio") == [1.0]


@pytest.mark.parametrize(("target", "name"), [("blade", "BLADE"), ("reward", "GRPO")])
def test_training_moves_every_tensor_of_the_policy_and_none_of_the_reference(
    folder: Path, tmp_path: Path, target: str, name: str
) -> None:
    trainer = make_trainer(folder, tmp_path, target=target)
    before, reference = weights(trainer.model), weights(trainer.ref_model)
    trainer.train()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())
    assert_close(trainer.ref_model, reference, tolerance=0)
    told = {name for entry in trainer.state.log_history for name in entry}
    assert {"reward", "rewards/ndcg", "kl", "blade/kl_k3", "blade/logps", "blade/target_std", "num_tokens"} <= told
    assert {
        "blade/quantile",
        "blade/saturated",
        "blade/tied_pairs",
        "blade/dead_groups",
        "blade/zero_advantages",
    } <= told
    assert {"blade/ratio", "blade/clipped", "blade/invalid", "blade/duplicates"} <= told
    assert trainer.display_name == name


@pytest.mark.slow
def test_rewarded_lists_are_drawn_more_often(folder: Path, tmp_path: Path) -> None:
    options = {"rewards": {"low": 1.0}, "reward_functions": {"low": low}, "max_steps": 20, "learning_rate": 0.02}
    trainer = make_trainer(folder, tmp_path, **options, optim="adamw_torch", per_device_train_batch_size=16)
    trainer.train()
    rewards, quantiles = logged(trainer, "reward"), logged(trainer, "blade/quantile")
    assert rewards[-1] > rewards[0] + 5 and quantiles[-1] > 0.8 > 0.6 > quantiles[0]
    assert logged(trainer, "kl")[-1] > 0.5 and logged(trainer, "blade/kl_k3")[-1] > 0.3
    assert set(logged(trainer, "blade/invalid")) == set(logged(trainer, "blade/duplicates")) == {0.0}


def test_a_function_is_a_reward_like_any_other(folder: Path, tmp_path: Path) -> None:
    def half_of_hit(batch: ListBatch) -> np.ndarray:
        return 0.5 * batch.hits[0].any(-1)

    named = make_trainer(folder, tmp_path, rewards={"hit": 1.0}, max_steps=2)
    own = make_trainer(folder, tmp_path, rewards={"own": 2.0}, reward_functions={"own": half_of_hit}, max_steps=2)
    named.train(), own.train()
    assert_same_steps(own, named)
    assert_close(own.model, weights(named.model), tolerance=0)
    assert logged(own, "rewards/own") == pytest.approx([value / 2 for value in logged(named, "rewards/hit")])


def test_accumulating_changes_nothing(folder: Path, tmp_path: Path) -> None:
    whole = make_trainer(folder, tmp_path, max_steps=3)
    parts = make_trainer(folder, tmp_path, max_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    whole.train(), parts.train()
    assert_same_steps(parts, whole)
    assert_close(parts.model, weights(whole.model))
    assert max(map(abs, logged(whole, "kl"))) > 0.01


def test_checkpointing_changes_nothing(folder: Path, tmp_path: Path) -> None:
    plain, other = (make_trainer(folder, tmp_path, max_steps=2, activation_checkpointing=on) for on in (False, True))
    plain.train(), other.train()
    assert any(vars(module).get("gradient_checkpointing") for module in other.model.modules())
    assert_same_steps(other, plain)
    assert_close(other.model, weights(plain.model))


def test_prompts_are_those_of_supervised_rows(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    whole = {"max_prompts": None}
    for options in (whole, {**whole, "every_position": True}, {"max_prompts": 10, "max_length": 20}):
        trainer = make_trainer(folder, tmp_path, **options, max_steps=-1)
        lengths = {"every_position": trainer.args.every_position, "max_length": trainer.args.max_length}
        rows = build_list_rows(dataset.train, trainer.prompt_format, **lengths)
        prompts = [
            [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
            for row in rows
        ]
        kept = (
            range(len(rows))
            if options["max_prompts"] is None
            else np.linspace(0, len(rows) - 1, 10).round().astype(int)
        )
        assert trainer.train_dataset["prompt_ids"] == [prompts[row] for row in kept]
        assert trainer.train_dataset["targets"] == [rows["items"][row] for row in kept]
        assert trainer.train_dataset["row"] == list(range(len(kept)))


@pytest.mark.parametrize("surface", ["item_token", "title"])
def test_lists_are_learned_on_every_surface(dataset: RecDataset, surface: str, folder: Path, tmp_path: Path) -> None:
    catalog = dataset.catalog.with_surface(surface)
    if surface == "title":
        tokenizer = make_bpe([*catalog.surfaces, TITLE_PROMPT["prompt_head"], TITLE_LIST_TAIL] * 2)
        model = make_family("llama", vocab_size=len(tokenizer))
    else:
        tokenizer = make_tokenizer(catalog)
        model = make_model(tokenizer, hidden_size=16, dropout=0.0, max_length=256)
    options = {"model": model, "processing_class": tokenizer, "catalog": catalog, "max_length": 400, "max_steps": 2}
    trainer = make_trainer(
        folder, tmp_path, **options, num_references=2, num_generations=3, per_device_train_batch_size=2
    )
    before = weights(trainer.model)
    trainer.train()
    assert logged(trainer, "kl")[0] == 0.0 and logged(trainer, "blade/invalid") == [0.0, 0.0]
    assert any(not torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())


def test_a_tokenizer_without_a_pad_token_pads_with_eos(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder / "model")
    tokenizer.pad_token = None
    trainer = make_trainer(folder, tmp_path, processing_class=tokenizer, max_steps=1)
    padded = make_trainer(folder, tmp_path, max_steps=1)
    trainer.train(), padded.train()
    assert_same_steps(trainer, padded)


def test_evaluations_during_training_rank_the_split_and_choose_the_best_model(
    folder: Path, dataset: RecDataset, tmp_path: Path
) -> None:
    options = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "learning_rate": 0.5,
    }
    options |= {"metric_for_best_model": "eval_reward", "load_best_model_at_end": True, "max_steps": 6, "max_users": 7}
    options["rewards"] = {"ndcg": 1.0, "recall": 2.0}
    trainer = make_trainer(folder, tmp_path, eval_dataset=dataset.validation, **options)
    trainer.train()
    told = {entry["step"]: entry for entry in trainer.state.log_history if "eval_ndcg@3" in entry}
    assert list(told) == [2, 4, 6] and all(
        entry["eval_num_users"] == 7 and "eval_loss" not in entry for entry in told.values()
    )
    assert not any("eval_kl" in name for entry in told.values() for name in entry)
    for entry in told.values():  # lists have three items, as many as the cutoff
        assert entry["eval_reward"] == pytest.approx(entry["eval_reward/ndcg"] + 2 * entry["eval_reward/recall"])
        assert entry["eval_reward/ndcg"] == pytest.approx(entry["eval_ndcg@3"])
    best = max(entry["eval_reward"] for entry in told.values())
    assert trainer.state.best_metric == pytest.approx(best)
    assert trainer.evaluate()["eval_reward"] == pytest.approx(best)  # the best weights were loaded


def test_an_evaluation_changes_nothing(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    options = {"num_iterations": 2, "max_steps": 2}
    plain = make_trainer(folder, tmp_path, **options)
    options |= {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 5, "max_users": 7}
    evaluated = make_trainer(folder, tmp_path, eval_dataset=dataset.validation, **options)
    plain.train(), evaluated.train()
    assert_same_steps(evaluated, plain)
    assert_close(evaluated.model, weights(plain.model), tolerance=0)


def test_a_run_folder_writes_the_lists_of_the_trainer(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, learning_rate=0.5)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    recommender, ranked = Recommender.from_pretrained(tmp_path), trainer.rank(dataset.test).items
    for row in range(8):
        history = [dataset.catalog.ids[item] for item in dataset.test["history"][row]]
        assert [one.item_id for one in recommender.recommend(history, k=3)] == [
            dataset.catalog.ids[item] for item in ranked[row]
        ]
    card = (tmp_path / "README.md").read_text()
    assert "Trained with BLADE." in card and "| list_length | 3 |" in card and "| rewards | {'ndcg': 1.0} |" in card
    tags = next(line for line in card.splitlines() if line.startswith("tags: "))
    assert json.loads(tags.removeprefix("tags: ")) == ["trl", "trl-rec", "blade"]


@pytest.mark.parametrize("num_iterations", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_resuming_skips_an_incomplete_checkpoint_and_ends_the_same(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, num_iterations: int
) -> None:
    options: dict[str, Any] = {"max_steps": 8, "optim": "adamw_torch", "learning_rate": 0.01, "max_prompts": 13}
    # An epoch has three full batches, and a smaller one that is left out if rollouts are used twice.
    options |= {"num_iterations": num_iterations}
    whole = make_trainer(folder, tmp_path / "whole", **options)
    whole.train()
    cut = make_trainer(folder, tmp_path / "cut", **options, save_strategy="steps", save_steps=2)
    cut.train()
    for name in ("checkpoint-6", "checkpoint-8"):
        (tmp_path / "cut" / name / "complete").unlink()
    resumed = make_trainer(folder, tmp_path / "cut", **options, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-8 is skipped: it was not written completely" in caplog.text
    for name in ("reward", "kl", "blade/ratio", "grad_norm"):
        assert logged(resumed, name) == logged(whole, name), name
    assert_close(resumed.model, weights(whole.model), tolerance=0)


OVERRIDDEN = ["compute_loss", "_set_signature_columns_if_needed", "_get_train_sampler", "_prepare_dataset", "evaluate"]
OVERRIDDEN += [
    "evaluation_loop",
    "train",
    "end",
    "save_model",
    "create_model_card",
    "_save_checkpoint",
    "predict",
    "log",
]
OVERRIDDEN += ["_load_from_checkpoint", "_push_from_checkpoint"]


def test_the_list_of_overridden_methods_is_complete() -> None:
    ours = {name for kind in BladeTrainer.__mro__ if kind.__module__.startswith("trl_rec.") for name in vars(kind)}
    theirs = {name for name in ours if inspect.isfunction(getattr(DPOTrainer, name, None))} - {
        "__init__",
        "__module__",
        "push_to_hub",  # passes all arguments on, as does the next method
        "_run_epoch",
    }
    assert theirs == set(OVERRIDDEN)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_methods_still_have_trls_signature(name: str) -> None:
    """If a new TRL adds or renames a parameter, this test fails instead of a user's run."""
    theirs = list(inspect.signature(getattr(DPOTrainer, name)).parameters)
    ours = inspect.signature(getattr(BladeTrainer, name)).parameters
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in ours.values()):
        assert theirs == ["self", "dataset", "processing_class", "args", "dataset_name"]
    else:
        assert list(ours) == theirs
