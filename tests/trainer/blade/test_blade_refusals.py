"""Tests which settings and data BLADE refuses with an error message. Most are refused before any list is drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import DPOConfig

from tests.data.test_rows import make_split
from tests.trainer.blade.blade_runs import make_trainer
from tests.trainer.runs import QUIET, make_folder
from trl_rec import RecDataset, load
from trl_rec.evaluation.rewards import REWARDS
from trl_rec.items import ItemCatalog
from trl_rec.models import load_model
from trl_rec.trainer import BladeConfig


LISTS = {"list_length": 3, "eval_ks": [3]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("refusals")
    make_folder(path)
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> RecDataset:
    return load(folder / "data")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL warns about its own deprecated options
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": ["hinge"]}, r"BladeConfig: loss_type=\['hinge'\] has no effect"),
        ({"ld_alpha": 0.5}, "ld_alpha=0.5 has no effect, because the loss is a policy gradient of whole lists"),
        ({"label_smoothing": 0.1}, "label_smoothing=0.1 has no effect"),
        ({"f_divergence_type": "js_divergence"}, "f_divergence_type='js_divergence' has no effect"),
        ({"use_weighting": True}, "use_weighting=True has no effect"),
        ({"padding_free": True}, "padding_free=True has no effect"),
        ({"truncation_mode": "keep_end"}, "truncation_mode='keep_end' has no effect"),
        ({"pad_to_multiple_of": 64}, "pad_to_multiple_of=64 has no effect"),
        ({"pad_token": "<eos>"}, "pad_token='<eos>' has no effect"),
        ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs=True has no effect"),
        (
            {"sync_ref_model": True},
            "sync_ref_model=True has no effect, because .* the reference policy never changes",
        ),
        ({"disable_dropout": False}, "disable_dropout=False has no effect"),
        ({"eval_length_penalty": 1.0}, "eval_length_penalty=1.0 has no effect"),
        ({"target": "grpo"}, "target must be one of blade, best_of_n, rank, reward, not 'grpo'"),
        ({"rewards": {}}, r"rewards must map names to weights, as in .*, not \{\}"),
        ({"rewards": ["ndcg"]}, r"rewards must map names to numbers, but is \['ndcg'\]"),
        ({"rewards": {"ndcg": "1.0"}}, "rewards: ndcg must be a number, not '1.0'"),
        ({"num_generations": 1}, "num_generations must be at least 2, not 1; the advantage of a rollout is relative"),
        ({"list_length": None}, "list_length is None, but BLADE trains on lists"),
        ({"num_references": 0}, "with target=blade, num_references must be at least 1, not 0"),
        ({"num_references": -1, "target": "rank"}, "num_references must be at least 0, not -1"),
        ({"num_iterations": 0}, "num_iterations must be at least 1, not 0"),
        ({"best_of": 0.5}, "best_of must be at least 1, not 0.5"),
        ({"max_prompts": 0}, "max_prompts must be at least 1, not 0"),
        ({"reference_batch_size": 0}, "reference_batch_size must be at least 1, not 0"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
        ({"prior": 0.0}, "prior must be above 0, not 0.0"),
        ({"clip": float("nan")}, "clip must be above 0, not nan"),
        ({"dynamic_coefficient": 1.2}, "dynamic_coefficient must be from 0 to 1, not 1.2"),
        ({"beta": -0.1}, "beta must be at least 0, not -0.1"),
        ({"num_iterations": 2, "save_steps": 5}, "num_iterations is 2, .* at step 5, between two steps"),
        (
            {"num_iterations": 2, "save_strategy": "epoch", "max_steps": 5},
            "num_iterations is 2, .* at step 5, between two steps",
        ),
        (
            {
                "num_iterations": 2,
                "save_strategy": "best",
                "metric_for_best_model": "ndcg@3",
                "eval_strategy": "epoch",
                "max_steps": 5,
            },
            "num_iterations is 2, .* at step 5, between two steps",
        ),
        ({"num_iterations": 2, "save_steps": 0.1}, "save_steps is 0.1, a share of the run; give a number of steps"),
        ({"num_iterations": 2, "num_train_epochs": 0.6, "max_steps": -1}, "num_train_epochs must be whole, not 0.6"),
        (
            {
                "num_iterations": 2,
                "save_strategy": "best",
                "metric_for_best_model": "ndcg@3",
                "eval_strategy": "steps",
                "eval_steps": 3,
            },
            "num_iterations is 2, .* at step 3",
        ),
        (
            {"num_iterations": 2, "train_sampling_strategy": "sequential"},
            "train_sampling_strategy='sequential' has no effect",
        ),
    ],
)
def test_options_without_effect_or_meaning_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        BladeConfig(str(tmp_path), **{**QUIET, **LISTS, **options})


def test_valid_options_are_accepted(tmp_path: Path) -> None:
    for options in (
        {"save_steps": 0.1},
        {"num_iterations": 2, "save_steps": 4},
        {"num_iterations": 2, "save_strategy": "epoch"},
        {"num_iterations": 2, "save_strategy": "no", "save_steps": 5},
        {"target": "reward", "num_references": 0},
        {"rewards": '{"ndcg": 1, "mgu": 4.0}'},
    ):
        BladeConfig(str(tmp_path), **{**QUIET, **LISTS, **options})


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's config still sets the deprecated `gradient_checkpointing`
def test_defaults_follow_the_target(tmp_path: Path) -> None:
    shares = {"blade": 0.3, "best_of_n": 0.0, "rank": 1.0, "reward": 1.0}
    for target, share in shares.items():
        config = BladeConfig(str(tmp_path), **QUIET, **LISTS, target=target)
        assert (config.beta, config.standardize) == ((0.001, True) if target == "reward" else (1.0, False))
        assert config.rollout_share == share and config.rewards == {"ndcg": 1.0}
        config = BladeConfig(str(tmp_path), **QUIET, **LISTS, target=target, beta=0.5, standardize=target != "reward")
        assert (config.beta, config.standardize) == (0.5, target != "reward")
    assert (config.learning_rate, config.pad_to_multiple_of) == (1e-5, None)
    # If the next line fails, BladeConfig may no longer need its own default of the learning rate.
    assert DPOConfig(str(tmp_path), **QUIET).learning_rate == 1e-6


def returns(value: Any) -> dict[str, Any]:
    return {"rewards": {"own": 1.0}, "reward_functions": {"own": lambda batch: value(batch.lists.astype(float))}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": {"novelty": 1.0}}, f"there is no reward 'novelty'; choose from {', '.join(sorted(REWARDS))}"),
        ({"rewards": {"ndcg": float("nan")}}, "rewards: ndcg must be a finite number, not nan"),
        (
            returns(lambda lists: lists.mean(-1) * np.nan),
            "reward 'own' returned nan for list 0 of row 0; return finite numbers",
        ),
        (returns(lambda lists: lists.mean(-1) - np.inf), "reward 'own' returned -inf for list 0 of row 0"),
        (
            returns(lambda lists: lists.mean(1)),
            r"reward 'own' returned values of the shape \(2, 3\); return one value per list, of the shape \(2, 4\)",
        ),
        (returns(lambda lists: lists.mean((1, 2))), r"reward 'own' returned values of the shape \(2,\)"),
        (returns(lambda lists: lists), r"reward 'own' returned values of the shape \(2, 4, 3\)"),
        (returns(lambda lists: 1.0), r"reward 'own' returned values of the shape \(\)"),
    ],
)
def test_wrong_rewards_are_refused_before_anything_is_drawn(
    folder: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(folder, tmp_path, **options)


@pytest.mark.parametrize("name", ["ild", "mgu"])
def test_rewards_of_groups_need_groups(folder: Path, dataset: RecDataset, tmp_path: Path, name: str) -> None:
    catalog = ItemCatalog(dataset.catalog.items, "semantic_id", None, dataset.catalog.semantic_ids)
    with pytest.raises(
        ValueError, match="the rewards ild and mgu need groups of items; set group_column when preparing"
    ):
        make_trainer(folder, tmp_path, catalog=catalog, rewards={"ndcg": 1.0, name: 0.5})


def test_a_reward_that_fails_later_names_the_training_rows(folder: Path, tmp_path: Path) -> None:
    def fails(batch: Any) -> np.ndarray:
        values = batch.lists[..., 0].astype(float)
        return np.where(batch.lists.shape[1] == 5, np.nan, values)  # NaN for rollouts only

    trainer = make_trainer(folder, tmp_path, rewards={"own": 1.0}, reward_functions={"own": fails}, num_generations=5)
    message = r"reward 'own' returned nan for list 0 of row 0; .* \(in the batch of the training rows \[\d+, \d+"
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder / "model")
    trainer = make_trainer(folder, tmp_path, model=model, ref_model="loaded")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="the model's logits contain NaN"):
        trainer.train()
    trainer = make_trainer(folder, tmp_path, target="reward", standardize=False, beta=1e38)
    with torch.no_grad():
        trainer.ref_model.model.norm.weight.mul_(1e3)  # beta times the log-ratio becomes infinite
    with pytest.raises(
        ValueError, match=r"the loss of \d rows? is not finite at step 0 \(on this process: training rows \[\d+"
    ):
        trainer.train()


@pytest.mark.parametrize("name", ["data_collator", "compute_metrics"])
def test_arguments_without_use_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"BladeTrainer does not support {name}, because .*; leave it out"):
        make_trainer(folder, tmp_path, **{name: lambda given: given})


def test_a_model_with_nothing_to_train_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no parameter of the model is trainable; load an adapter with .*load_policy"):
        make_trainer(folder, tmp_path, model=load_model(folder / "model").requires_grad_(False))


def test_wrong_data_are_refused_before_anything_is_drawn(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    rows, known = Dataset.from_dict({"input_ids": [[1]]}), [*range(56)]
    cases: list[tuple[str, dict]] = [
        ("the train dataset is not a split of a RecDataset; pass dataset.train", {"train_dataset": rows}),
        ("the eval dataset is not a split of a RecDataset", {"eval_dataset": rows}),
        ("must use only the training split, not the validation split", {"train_dataset": dataset.validation}),
        (
            "no row of the train split contains 3 new items",
            {"train_dataset": make_split([([0], [1, 0, 2])])},
        ),
        (
            "the history of training row 1 leaves 2 of 60 items, too few for a list of 3",
            {"train_dataset": make_split([([0, 0], [1, 2, 3]), ([*known, *known, 56, 57], [58])]), "max_length": 250},
        ),
    ]
    for message, options in cases:
        with pytest.raises(ValueError, match=message):
            make_trainer(folder, tmp_path, **options)
    exhausted = {**cases[-1][1], "eval_exclude_history": False}
    assert len(make_trainer(folder, tmp_path, **exhausted).train_dataset) == 2
    enough = make_split([([*known, *known], [56, 57, 58])])  # a repeated item counts once
    assert len(make_trainer(folder, tmp_path, train_dataset=enough, max_length=250).train_dataset) == 1


def test_fsdp_is_refused_before_anything_is_drawn(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(folder, tmp_path)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match="lists cannot be sampled under FSDP; use DDP or DeepSpeed"):
        trainer.train()
    assert not list(tmp_path.glob("references-*"))
