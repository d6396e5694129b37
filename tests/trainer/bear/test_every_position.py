"""Tests rows in which every item of a sequence except the first is a target. On any surface, they have the same loss
and gradient as one row per target."""

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.conftest import make_model, make_tokenizer
from tests.models.test_completions import tiny
from tests.trainer.runs import QUIET, assert_same, conclude, losses, trained
from trl_rec import BearConfig, BearTrainer, ItemCatalog, prepare
from trl_rec.models.attention import warn_once
from trl_rec.ragged import Ragged
from trl_rec.trainer.bear.building import build_training_rows


TITLES = [
    "Blue Pen, 12 Pack",
    "Blue Pen, 24 Pack",
    "Blue Pencil",
    "Red Pen",
    "Desk Lamp",
    "Desk Mat",
    "Mug",
    "Stapler",
]
# Users with one to six targets; the first row is the longest.
HISTORIES = [[0, 3, 1, 5, 2, 7, 4], [6, 1], [2, 5, 0, 4], [7, 3, 6, 0, 2]]
CHAT = "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}assistant:"


def make(output: Path, family: Any = "llama", surface: str = "title", **options: Any) -> BearTrainer:
    """Makes a trainer on HISTORIES. By default, each of its batches contains all rows."""
    ids = Ragged.from_lists([[f"<a_{item % 3}>", f"<b_{item // 3}>"] for item in range(len(TITLES))], object)
    table = pa.table({"item_id": [str(item) for item in range(len(TITLES))], "title": TITLES})
    catalog = ItemCatalog(table, surface=surface, semantic_ids=ids)
    tokenizer = make_tokenizer(TITLES * 4, vocab_size=300)
    tokenizer.add_tokens(catalog.new_tokens)
    tokenizer.chat_template = CHAT
    tokenizer.padding_side = options.pop("padding_side", "left")
    columns = {
        "user": pa.array(range(len(HISTORIES)), pa.int32()),
        "history": pa.array([items[:1] for items in HISTORIES], pa.list_(pa.int32())),
        "targets": pa.array([items[1:] for items in HISTORIES], pa.list_(pa.int32())),
    }
    passed = {name: options.pop(name) for name in ("peft_config", "train_dataset") if name in options}
    passed.setdefault("train_dataset", Dataset(pa.table(columns), split="train"))
    defaults = {"max_length": 512, "per_device_train_batch_size": 20, "save_strategy": "no", "learning_rate": 0.1}
    defaults |= {"optim": "sgd", "lr_scheduler_type": "constant", "activation_checkpointing": False}
    config = BearConfig(str(output), **{**QUIET, **defaults, **options})
    model = family if isinstance(family, PreTrainedModel) else weak(family, len(tokenizer))
    return BearTrainer(model, config, processing_class=tokenizer, catalog=catalog, **passed)


def weak(family: str, vocab_size: int) -> PreTrainedModel:
    """Returns a small model with halved weights. With larger weights, rounding alone can change a gradient by 1e-5."""
    model = make_model(family, vocab_size=vocab_size, attention="eager" if family == "gemma2" else "sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5 if parameter.ndim > 1 else 1.0)
    return model


def whole_batch(trainer: BearTrainer) -> dict[str, Tensor]:
    return trainer.data_collator([trainer.train_dataset[row] for row in range(len(trainer.train_dataset))])


def measured(trainer: BearTrainer) -> tuple[float, Tensor, int]:
    """Returns the loss and the gradient of all rows, and the number of tokens in these rows."""
    batch = whole_batch(trainer)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradient = [parameter.grad.flatten() for parameter in trainer.model.parameters() if parameter.requires_grad]
    return loss.item(), torch.cat(gradient).clone(), int(batch["attention_mask"].sum())


def assert_same_as_rows(every: BearTrainer, rows: BearTrainer) -> None:
    ours, gradient, num_tokens = measured(every)
    expected, expected_gradient, more_tokens = measured(rows)
    assert ours == pytest.approx(expected, abs=1e-5)
    assert float((gradient - expected_gradient).abs().max()) <= 1e-5
    assert float(expected_gradient.abs().max()) > 0.01
    assert num_tokens < more_tokens
    assert len(every.train_dataset) < len(rows.train_dataset) == sum(len(items) - 1 for items in HISTORIES)


@pytest.mark.parametrize(
    ("family", "surface", "options"),
    [
        ("llama", "title", {}),
        ("llama", "title", {"softmax": "vocabulary", "chat_template": True}),
        ("llama", "title", {"chat_template": True, "padding_side": "right"}),
        ("llama", "title", {"prompt_tail": "", "bear_weight": 0}),
        ("qwen3", "title", {"softmax": "vocabulary", "bear_weight": 0}),
        ("phi3", "title", {}),
        ("gemma2", "title", {}),
        ("mistral-window", "title", {}),
        # The load-balancing loss is off, because it depends on how often a token is read.
        ("qwen3_moe", "title", {"router_aux_loss_coef": 0.0}),
        ("llama", "semantic_id", {}),
        ("llama", "semantic_id", {"prompt_item": "{surface}\n", "prompt_tail": "Next:"}),
        ("llama", "item_token", {"chat_template": True}),
        ("mistral-window", "item_token", {"prompt_item": "{surface} "}),
    ],
)
def test_loss_and_gradient_equal_one_row_per_target(
    family: str, surface: str, options: dict[str, Any], tmp_path: Path
) -> None:
    every = make(tmp_path, family, surface, targets="all", **options)
    assert_same_as_rows(every, make(tmp_path, family, surface, **options))
    assert len(every.train_dataset) == len(HISTORIES)


@pytest.mark.parametrize("options", [{"max_row_tokens": 150, "max_length": 140}, {"max_history": 3}])
def test_long_histories_in_several_rows_equal_one_row_per_target(options: dict[str, Any], tmp_path: Path) -> None:
    every = make(tmp_path, targets="all", long_histories="rows", **options)
    assert len(every.train_dataset) > len(HISTORIES)
    options = {name: value for name, value in options.items() if name != "max_row_tokens"}
    assert_same_as_rows(every, make(tmp_path, **options))


def test_adapters(tmp_path: Path) -> None:
    def lora() -> LoraConfig:
        return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)

    trainers = []
    for options in ({"targets": "all"}, {}):
        torch.manual_seed(0)
        trainers.append(make(tmp_path, peft_config=lora(), **options))
    for one, other in zip(trainers[0].model.parameters(), trainers[1].model.parameters(), strict=True):
        other.data.copy_(one.data)
    assert_same_as_rows(*trainers)


def test_quantised_bases(tmp_path: Path) -> None:
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=320, initializer_range=0.1, pad_token_id=0, **size)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    trainers = []
    for options in ({"targets": "all"}, {}):
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", quantization_config=deepcopy(nf4))
        assert "4bit" in type(base.model.layers[0].mlp.up_proj).__name__
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
        trainers.append(make(tmp_path, base, peft_config=lora, **options))
        for name, parameter in trainers[-1].model.named_parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
            if "lora_B" in name:
                torch.manual_seed(0)
                nn.init.normal_(parameter, std=0.1)
            elif "lora_A" in name:
                torch.manual_seed(1)
                nn.init.normal_(parameter, std=0.1)
    assert_same_as_rows(*trainers)


def small_steps(**options: Any) -> dict[str, Any]:
    return {"targets": "all", "max_steps": 3, "per_device_train_batch_size": 4, **options}


def test_accumulation_and_checkpointing_change_nothing(tmp_path: Path) -> None:
    whole = make(tmp_path, **small_steps())
    whole.train()
    for options in (
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"activation_checkpointing": True},
    ):
        other = make(tmp_path, **small_steps(**options))
        other.train()
        assert losses(other) == pytest.approx(losses(whole), abs=1e-5)
        for one, expected in zip(other.model.parameters(), whole.model.parameters(), strict=True):
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tail", [None, ""])
@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_weights_decay_with_the_age_of_a_target(family: str, tail: str | None, tmp_path: Path) -> None:
    options = {"bear_weight": 0, "prompt_tail": tail}
    every = make(tmp_path, family, targets="all", target_age_decay=0.5, **options)
    rows = make(tmp_path, family, **options)
    total = 0.0
    weights = 0.0
    row = 0
    for items in HISTORIES:
        for age in reversed(range(len(items) - 1)):
            batch = rows.data_collator([rows.train_dataset[row]])
            count = int((batch["labels"] != -100).sum())
            total += 0.5**age * count * rows.compute_loss(rows.model, batch).item()
            weights += 0.5**age * count
            row += 1
    assert measured(every)[0] == pytest.approx(total / weights, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_targets_of_a_row_share_sampled_items(family: str, tmp_path: Path) -> None:
    options = {"prompt_item": "{surface}\n", "bear_weight": 0, "sampled_items": 3}
    trainer = make(tmp_path, family, "item_token", **small_steps(**options))
    batch = whole_batch(trainer)
    assert batch["negatives"].shape[0] == len(HISTORIES)
    trainer.model.train()
    shared = trainer.compute_loss(trainer.model, dict(batch))
    if family == "llama":
        # This setting makes the trainer read one row per target. Llama itself ignores it, so the loss stays the same.
        trainer.model.config.sliding_window = 1
        warn_once.cache_clear()
        torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), shared, atol=1e-5, rtol=0)
    shared.backward()
    assert all(parameter.grad is not None for parameter in trainer.model.parameters())


def test_the_load_balancing_loss_leaves_the_other_terms_unchanged(tmp_path: Path) -> None:
    balanced = make(tmp_path, "qwen3_moe", targets="all", router_aux_loss_coef=0.5)
    plain = make(tmp_path, "qwen3_moe", targets="all", router_aux_loss_coef=0.0)
    batch = whole_batch(balanced)
    loss = balanced.batch_loss(balanced.model, batch, None)
    expected = plain.batch_loss(plain.model, batch, None)
    torch.testing.assert_close(loss.loss, expected.loss)
    assert loss.aux_loss is not None and expected.aux_loss is None
    assert measured(balanced)[0] == pytest.approx((loss.loss + 0.5 * loss.aux_loss).item(), abs=1e-5)


def test_next_items_of_several_tasks(tmp_path: Path) -> None:
    """In next-item rows, each target has a branch: a part of the row, after the history, that other targets do not
    read. Rows of other tasks have no branches. The loss of next-item rows is the same as without other tasks."""
    dataset = prepare("toy", tmp_path / "data", toy_users=6, toy_items=60)
    tokenizer = make_tokenizer([*dataset.catalog.titles, "genres"], vocab_size=320)
    tasks = {"next_item": 1.0, "history_to_preference": 1.0}
    common: dict[str, Any] = {"targets": "all", "max_length": 512, "per_device_train_batch_size": 4, **QUIET}
    common |= {"activation_checkpointing": False, "max_steps": 1, "save_strategy": "no"}
    config = BearConfig(str(tmp_path / "run"), tasks=tasks, **common)
    rows = build_training_rows(dataset, tokenizer, config)
    model = tiny("llama")
    model.resize_token_embeddings(len(tokenizer))
    trainer = BearTrainer(model, config, rows, processing_class=tokenizer, catalog=dataset.catalog)
    alone = BearTrainer(
        model,
        BearConfig(str(tmp_path / "run"), **common),
        dataset.train,
        processing_class=tokenizer,
        catalog=dataset.catalog,
    )
    names = trainer.train_dataset["task"]
    of_task = [row for row, name in enumerate(names) if name == "next_item"]
    assert len(of_task) == len(alone.train_dataset) and len(names) > len(of_task)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in of_task])
    mixed = trainer.compute_loss(trainer.model, batch).item()
    batch = alone.data_collator([alone.train_dataset[row] for row in range(len(of_task))])
    assert mixed == pytest.approx(alone.compute_loss(alone.model, batch).item(), abs=1e-5)
    trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_row_tokens": 64}, "max_row_tokens=64 has no effect, because it applies only to rows with several"),
        ({"join_windows": True}, "join_windows=True has no effect"),
        ({"long_histories": "rows"}, "long_histories='rows' has no effect"),
        ({"targets": "all", "long_histories": "no"}, "long_histories must be 'windows' or 'rows', not 'no'"),
        ({"targets": "all", "max_row_tokens": 64, "max_length": 65}, "max_row_tokens=64 is below max_length=65"),
    ],
)
def test_invalid_settings_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        BearConfig(str(tmp_path), **QUIET, **options)


def run(options: dict[str, Any], output: Path) -> None:
    """Trains, and saves the weights and the losses. Every process of the run calls this function."""
    trainer = make(output, **options)
    trainer.train()
    trainer.save_model(output)
    conclude(trainer, output, losses=losses(trainer))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_two_processes_equal_one(name: str, tmp_path: Path) -> None:
    one = trained("alone", partial(run, small_steps()), tmp_path / "one")
    two = trained(name, partial(run, small_steps(per_device_train_batch_size=2)), tmp_path / "two")
    assert_same(two, one, ("losses",))
