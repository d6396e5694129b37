"""Tests training on several tasks: losses, prompt templates, and batches of rows from different tasks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.trainer.bear import task_runs
from tests.trainer.bear.task_runs import TASKS, make_folder, make_trainer
from tests.trainer.runs import losses
from trl_rec import BearConfig, BearTrainer, RecDataset, Recommender, bear_loss, load
from trl_rec.data.tasks.templates import TASK_NAMES, template_ids
from trl_rec.data.tasks.templates import TASKS as ALL
from trl_rec.models import load_tokenizer
from trl_rec.trainer import TaskCollator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
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


def rows_of_each_task(trainer: BearTrainer) -> list[dict[str, Any]]:
    tasks = trainer.train_dataset["task"]
    return [trainer.train_dataset[tasks.index(name)] for name in TASKS]


def ce_of_each_task(trainer: BearTrainer, count: int = 6) -> dict[str, float]:
    """Returns the cross-entropy of each task over its first `count` rows."""
    tasks = np.array(trainer.train_dataset["task"])
    rows = [trainer.train_dataset[int(row)] for name in TASKS for row in np.flatnonzero(tasks == name)[:count]]
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    trainer.read_metrics()
    logged = trainer._metrics["eval"]
    return {name: logged[f"task/{name}/ce"][-1] for name in TASKS if f"task/{name}/ce" in logged}


def legal_positions(paths: list[list[int]], tokens: list[int]) -> list[list[int]]:
    """Returns the tokens that are legal at each position of a sequence of items."""
    legal, prefix = [], []
    for token in tokens:
        legal.append(
            sorted({path[len(prefix)] for path in paths if path[: len(prefix)] == prefix and len(path) > len(prefix)})
        )
        prefix = [] if [*prefix, token] in paths else [*prefix, token]
    return legal


@pytest.mark.parametrize("softmax", ["legal", "vocabulary"])
def test_items_have_the_loss_of_bear_and_texts_cross_entropy(
    folder: Path, dataset: RecDataset, tmp_path: Path, softmax: str
) -> None:
    """The expected loss is computed token by token from the model's logits, for a batch with one row per task."""
    trainer = make_trainer(folder, tmp_path, softmax=softmax, bear_weight=0.7, num_beams=2)
    rows = rows_of_each_task(trainer)
    batch = trainer.data_collator(rows)
    found = trainer.compute_loss(trainer.model, dict(batch))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    logits = trainer.model.eval()(**inputs).logits
    paths = [dataset.catalog.paths(trainer.processing_class)[item].tolist() for item in range(len(dataset.catalog))]
    total, count, ce = torch.zeros(()), 0, dict.fromkeys(TASKS, ())
    for place, row in enumerate(rows):
        learned = [label for label in row["labels"] if label != -100]
        free = ALL[row["task"]].answer != "item"
        choices = legal_positions(paths, learned) if softmax == "legal" and not free else [None] * len(learned)
        for target, legal, scores in zip(learned, choices, logits[place, -1 - len(learned) : -1], strict=True):
            if legal is not None and len(legal) == 1:
                continue
            legal = list(range(len(scores))) if legal is None else legal
            one = scores[legal].unsqueeze(0)
            wanted = torch.tensor([legal.index(target)])
            plain = F.cross_entropy(one, wanted)
            weighed = bear_loss(one, wanted, None, num_beams=2, weight=0.7, sharpness=2.75).loss[0]
            total, count = total + (plain if free else weighed), count + 1
            ce[row["task"]] = (*ce[row["task"]], plain.item())
    assert found.item() == pytest.approx(total.item() / count, abs=1e-5)
    trainer.read_metrics()
    logged = trainer._metrics["eval"]  # the model is in evaluation mode
    for name, values in ce.items():
        assert logged[f"task/{name}/ce"][-1] == pytest.approx(np.mean(values), abs=1e-5)
    of_items = [value for name, values in ce.items() if ALL[name].answer == "item" for value in values]
    assert logged["bear/ce"][-1] == pytest.approx(np.mean(of_items), abs=1e-5)


def test_a_row_is_a_template_of_its_task_and_the_answer(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path)
    rows, tokenizer = rows_of_each_task(trainer), trainer.processing_class
    batch = trainer.data_collator(rows)
    templates = template_ids(tokenizer, "semantic_id")
    assert batch["tasks"].tolist() == [TASK_NAMES.index(row["task"]) for row in rows]
    for row, ids, mask, labels in zip(rows, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        tokens = ids[mask.bool()].tolist()
        written = [[*template.fill(row["slots"]), *row["input_ids"]] for template in templates[row["task"]]]
        assert tokens in (written or [row["input_ids"]])
        assert "<unk>" not in tokenizer.decode(tokens)
        if ALL[row["task"]].answer == "text":
            assert labels[-1] == tokenizer.eos_token_id


def test_templates_are_drawn_by_seed_epoch_and_row(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, tasks={"item_to_id": 3.0})
    rows = [trainer.train_dataset[row] for row in range(len(trainer.train_dataset))]
    drawn: list[list[list[int]]] = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        collator = TaskCollator(pad_token_id=0, templates=trainer.data_collator.templates, seed=seed)
        collator.epoch.fill_(epoch)
        drawn.append([collator([row])["input_ids"][0].tolist() for row in rows])
    assert drawn[0] == drawn[3] and drawn[0] != drawn[1] and drawn[0] != drawn[2] and drawn[1] != drawn[2]
    heads = [collator._with_prompt(row)["input_ids"][:3] for row in rows]
    assert len({tuple(head) for head in heads}) == 4  # all templates of the task occur


def test_every_task_is_learned(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 25, "optim": "adamw_torch", "learning_rate": 1e-2, "disable_tqdm": True}
    trainer = make_trainer(
        folder, tmp_path, bear_weight=0.0, per_device_train_batch_size=16, logging_steps=25, **settings
    )
    untrained, before = weights(trainer.model), ce_of_each_task(trainer)
    trainer.train()
    assert all(not torch.equal(parameter, untrained[name]) for name, parameter in trainer.model.named_parameters())
    after = ce_of_each_task(trainer)
    assert after.keys() == before.keys() == TASKS.keys()
    for name in TASKS:
        assert after[name] < before[name] - 0.05, name
    assert {f"task/{name}/ce" for name in TASKS} <= trainer.state.log_history[0].keys()


def test_lists_are_measured_and_a_run_folder_recommends(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, eval_dataset=dataset.validation, eval_ks=[5])
    trainer.train()
    told = trainer.evaluate()
    assert {"eval_loss", "eval_ndcg@5", "eval_bear/ce"} <= told.keys() and not any("task/" in name for name in told)
    trainer.save_model()
    recommender, ranked = Recommender.from_pretrained(tmp_path), trainer.rank(dataset.test).items
    history = [dataset.catalog.ids[item] for item in dataset.test["history"][0]]
    listed = recommender.recommend(history, k=5, user=dataset.test["user"][0])
    assert [one.item_id for one in listed] == [dataset.catalog.ids[item] for item in ranked[0]]


def test_accumulating_changes_nothing(folder: Path, tmp_path: Path) -> None:
    whole, parts = (
        make_trainer(folder, tmp_path),
        make_trainer(folder, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4),
    )
    whole.train(), parts.train()
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    assert_close(parts.model, weights(whole.model))


def test_a_resumed_run_draws_the_same_templates_as_an_uninterrupted_run(folder: Path, tmp_path: Path) -> None:
    """The run is resumed within its second epoch."""
    tasks = {"next_item": 0.2, "id_to_item": 0.2, "query_to_item": 0.2, "user_to_profile": 0.2}
    common: dict[str, Any] = {"tasks": tasks, "max_steps": 5, "per_device_train_batch_size": 8}
    whole = make_trainer(folder, tmp_path / "whole", **common)
    whole.train()
    assert 1 < whole.state.epoch < 2 and whole.data_collator.epoch == 1
    cut = make_trainer(folder, tmp_path / "cut", save_strategy="steps", save_steps=4, **common)
    cut.train()
    resumed = make_trainer(folder, tmp_path / "cut", **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert resumed.state.global_step == 5 and losses(resumed)[-1] == losses(whole)[-1]
    assert_close(resumed.model, weights(whole.model), tolerance=0)


def test_text_tasks_alone_can_be_trained(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, tasks={"user_to_profile": 0.5, "history_to_title": 0.5}, max_steps=2)
    trainer.train()
    assert np.isfinite(losses(trainer)).all() and "bear/ce" not in trainer.state.log_history[0]


def test_a_split_is_refused_if_tasks_are_set(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tasks cannot be built from a split alone; pass train_dataset="):
        make_trainer(folder, tmp_path, train_dataset=dataset.train)
    config = BearConfig(str(tmp_path), **{**task_runs.DEFAULTS, "tasks": None, "task_history": 20})
    tokenizer = load_tokenizer(folder / "model")
    assert task_runs.build_training_rows(dataset, tokenizer, config) is dataset.train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {"colour": 1.0}}, "there is no task 'colour'; the tasks are next_item"),
        ({"tasks": {"next_item": 0}}, "tasks: next_item must be above 0, not 0"),
        ({"tasks": {}}, "tasks must map names to numbers"),
        ({"tasks": None}, "task_history=5 has no effect"),
        ({"list_length": 3, "eval_ks": [3]}, "tasks and list_length cannot be combined"),
        ({"task_cap": 0}, "task_cap must be at least 1"),
    ],
)
def test_invalid_settings_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BearConfig(str(tmp_path), **{**task_runs.DEFAULTS, **options})


def test_rows_of_similar_lengths_share_a_forward_pass_and_all_rows_share_a_step(folder: Path, tmp_path: Path) -> None:
    """With `batch_rebalance`, the rows of a step are sorted by length before they are divided into batches. The step
    changes the weights in the same way as one large batch would, but has less padding."""
    rows = make_trainer(folder, tmp_path).train_dataset
    rows, told = rows.select(np.linspace(0, len(rows) - 1, 16).astype(int)), {}

    def train(name: str, **options: Any) -> BearTrainer:
        trainer = make_trainer(folder, tmp_path / name, train_dataset=rows, max_steps=1, **options)
        collate, told[name] = trainer.data_collator, 0

        def watched(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            batch = collate(rows)
            told[name] += batch["input_ids"].numel()
            return batch

        trainer.data_collator = watched
        trainer.train()
        return trainer

    whole = train("whole", per_device_train_batch_size=16)
    parts = train(
        "parts",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        train_sampling_strategy="batch_rebalance",
    )
    assert_close(parts.model, weights(whole.model))
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5) and told["parts"] < 0.7 * told["whole"]
