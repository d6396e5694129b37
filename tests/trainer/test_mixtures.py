"""Mixtures of experts: every trainer trains them with TRL's load-balancing term, ranks with them, and saves a run
folder that can recommend. It makes no difference whether the initial model has `output_router_logits` switched on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig
from trl import SFTConfig, SFTTrainer

from tests.conftest import make_model
from tests.trainer import runs
from tests.trainer.alro import alro_runs
from tests.trainer.bear import task_runs
from tests.trainer.blade import blade_runs
from tests.trainer.kinds import make_folders
from tests.trainer.runs import QUIET, losses, with_known_names
from tests.trainer.softmax_dpo import preference_runs
from trl_rec import CandidateRanker, Recommender, load
from trl_rec.data import PromptFormat, build_rows
from trl_rec.data.dataset import split_rows
from trl_rec.models import load_model, load_tokenizer


Make = Callable[..., Any]  # makes a trainer from a folder, an output folder and options

SHORT = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_ks": [3], "learning_rate": 0.05}
LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
CASES: dict[str, tuple[str, Make, dict[str, Any]]] = {
    "bear": ("items", runs.make_trainer, {}),
    "bear-lists": ("items", runs.make_trainer, {"list_length": 3}),
    "bear-tasks": ("tasks", task_runs.make_trainer, {}),
    "alro": ("rated", alro_runs.make_trainer, {}),
    "blade": ("items", blade_runs.make_trainer, {}),
    "softmax_dpo": ("items", preference_runs.make_trainer, {}),
    "softmax_dpo-adapter": ("items", preference_runs.make_trainer, {"peft_config": LORA}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The datasets that the tests of single trainers use, each with a model that is a mixture of four experts."""
    found = make_folders(tmp_path_factory)
    for folder in found.values():
        model = make_model("qwen3_moe", vocab_size=len(load_tokenizer(folder / "model")))
        model.config.router_aux_loss_coef = 0.1
        model.save_pretrained(folder / "model")
    return found


def mixture(folder: Path, *, asked: bool = False) -> Any:
    """Returns the folder's model with `output_router_logits` set to `asked`, as if it had been saved that way."""
    model = load_model(folder / "model")
    model.config.output_router_logits = asked
    return model


def make(case: str, folders: dict[str, Path], output: Path, *, asked: bool = False, **options: Any) -> Any:
    kind, make_trainer, own = CASES[case]
    model = mixture(folders[kind], asked=asked)
    return make_trainer(folders[kind], output, **{**SHORT, **own, **options, "model": model})


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_mixture_trains_ranks_and_recommends(
    case: str, asked: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    split = load(folders[CASES[case][0]] / "data").validation
    options = {"eval_dataset": split, "eval_strategy": "steps", "eval_steps": 1, "max_users": 4}
    trainer = make(case, folders, tmp_path, asked=asked, **options)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert all(term > 0 for term in logged(trainer, "aux_loss"))
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad and ("lora_B" in name or "gate.weight" in name or "experts" in name):
            assert not torch.equal(parameter, before[name]), name

    ranked = trainer.rank(split)
    trainer.save_model(str(tmp_path))
    if case == "alro":
        assert_orders_alike(tmp_path, trainer.rows_of(split), ranked, trainer.catalog.ids)
    else:
        assert_recommends_alike(case, tmp_path, split, ranked.items, trainer.catalog.ids)
    if "peft_config" not in CASES[case][2]:
        # If `output_router_logits` were on, other libraries could not generate for a batch of prompts.
        assert not AutoConfig.from_pretrained(tmp_path).output_router_logits


def assert_recommends_alike(case: str, folder: Path, split: Dataset, ranked: np.ndarray, ids: list[str]) -> None:
    """Asserts that the run folder recommends what the trainer ranked."""
    recommender = Recommender.from_pretrained(folder)
    histories = split_rows(split, "history")
    for row in range(3):
        user = {"user": split["user"][row]} if case == "bear-tasks" else {}
        found = recommender.recommend([ids[item] for item in histories[row]], k=ranked.shape[1], **user)
        assert [recommended.item_id for recommended in found] == [ids[item] for item in ranked[row]]


def assert_orders_alike(folder: Path, rows: Dataset, ranked: Any, ids: list[str]) -> None:
    """Asserts that the run folder orders candidates as the trainer did. The candidates are shown to the model in the
    order in which the trainer showed them."""
    ranker = CandidateRanker.from_pretrained(folder)
    for row in range(3):
        given = rows[row]
        count = len(given["candidates"])
        shown = [given["candidates"][candidate] for candidate in ranked.slots[row, 0][:count].argsort()]
        found = ranker.rank(
            [ids[item] for item in given["history"]], given["history_ratings"], [ids[item] for item in shown]
        )
        best_first = [given["candidates"][candidate] for candidate in ranked.places[row, 0][:count].argsort()]
        assert [recommended.item_id for recommended in found] == [ids[item] for item in best_first]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_load_balancing_term_is_added_with_trls_weight(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The first loss equals the loss without the term, plus the weighted term."""
    first = {}
    for weight in (None, 0.0, 2.0):
        trainer = make(case, folders, tmp_path / str(weight), max_steps=1, router_aux_loss_coef=weight)
        trainer.train()
        first[weight] = logged(trainer, "loss")[0]
        if weight == 0:
            assert "aux_loss" not in trainer.state.log_history[0]
        else:
            term = logged(trainer, "aux_loss")[0]
    assert first[None] == pytest.approx(first[0.0] + 0.1 * term, abs=1e-5)
    assert first[2.0] == pytest.approx(first[0.0] + 2 * term, abs=1e-5)


def test_bear_with_weight_zero_over_the_vocabulary_is_trls_sft(folders: dict[str, Path], tmp_path: Path) -> None:
    """With accumulated batches, the losses, load-balancing terms and final weights equal those of `SFTTrainer`."""
    folder = folders["items"]
    dataset = load(folder / "data")
    tokenizer = load_tokenizer(folder / "model")
    common = {"max_steps": 3, "per_device_train_batch_size": 3, "learning_rate": 1e-2, "max_length": 96}
    common |= {
        "gradient_accumulation_steps": 2,
        "optim": "sgd",
        "activation_checkpointing": False,
        "save_strategy": "no",
    }
    theirs = SFTTrainer(
        mixture(folder),
        SFTConfig(str(tmp_path), **with_known_names({**common, **QUIET})),
        train_dataset=build_rows(dataset.train, PromptFormat.for_catalog(dataset.catalog, tokenizer), max_length=96),
        processing_class=tokenizer,
    )
    ours = runs.make_trainer(
        folder,
        tmp_path,
        model=mixture(folder),
        bear_weight=0,
        softmax="vocabulary",
        lr_scheduler_type="linear",
        **common,
    )
    theirs.train(), ours.train()
    assert losses(ours) == pytest.approx(logged(theirs, "loss"), abs=1e-5)
    assert logged(ours, "aux_loss") == pytest.approx(logged(theirs, "aux_loss"), abs=1e-5)
    for (name, mine), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-5), name


def test_a_load_balancing_term_of_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    runs.make_folder(tmp_path)
    with pytest.raises(ValueError, match="not a Mixture-of-Experts model"):
        preference_runs.make_trainer(tmp_path, tmp_path / "out", router_aux_loss_coef=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bear", "alro", "blade", "softmax_dpo"])
def test_recomputed_activations_change_nothing(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Recomputing the layers that give the router logits does not change the load-balancing term or its gradient."""
    results = []
    for recomputed in (False, True):
        trainer = make(case, folders, tmp_path / str(recomputed), activation_checkpointing=recomputed)
        trainer.train()
        results.append([logged(trainer, name) for name in ("loss", "aux_loss", "grad_norm")])
    assert results[1] == [pytest.approx(values, abs=1e-5) for values in results[0]]
