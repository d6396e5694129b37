"""Tests BEAR, MSL and SFT on training rows whose answer is a list of items. By default, the softmax of the loss is
taken over the tokens that would also be legal if the model wrote the list."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from torch import Tensor

from tests.conftest import make_model as make_family
from tests.trainer.runs import QUIET, losses, make_folder, make_trainer
from trl_rec import BearConfig, BearTrainer, ItemCatalog, RecDataset, Recommender, load, prepare
from trl_rec.data import PromptFormat, build_list_rows, build_rows
from trl_rec.decoding import list_logps, list_tokens
from trl_rec.decoding.padding import left_padded
from trl_rec.models import load_tokenizer, make_model, make_tokenizer, read_completions
from trl_rec.ragged import Ragged


LISTS = {"list_length": 3, "eval_ks": [3], "bear_weight": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists")
    make_folder(path)
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> RecDataset:
    return load(folder / "data")


def title_trainer(output: Path, tokenizer: Any, titles: list[str], **options: Any) -> BearTrainer:
    """Makes a trainer on the lists of two users, in a catalogue with two equal titles."""
    columns = {"item_id": [str(row) for row in range(8)], "title": titles}
    split = {
        "user": pa.array([0, 1], pa.int32()),
        "history": [[0], [3]],
        "targets": [[1, 2, 4, 5, 3], [4, 6, 3, 0]],
    }
    config = BearConfig(
        str(output), max_length=256, save_strategy="no", activation_checkpointing=False, **QUIET, **options
    )
    rows, catalog = Dataset(pa.table(split), split="train"), ItemCatalog(pa.table(columns))
    model = make_family("llama", vocab_size=len(tokenizer))
    with pytest.warns(UserWarning, match="1 of 8 items have the same text as an earlier item"):
        return BearTrainer(model, config, train_dataset=rows, processing_class=tokenizer, catalog=catalog)


def item_token_trainer(folder: Path, **options: Any) -> BearTrainer:
    dataset = prepare("toy", folder / "data", toy_users=12, toy_items=45).with_surface("item_token")
    tokenizer = make_tokenizer(dataset.catalog)
    model = make_model(tokenizer, hidden_size=16, dropout=0.0, max_length=128)
    config = BearConfig(str(folder / "run"), max_length=64, **QUIET, **options)
    return BearTrainer(model, config, train_dataset=dataset.train, processing_class=tokenizer, catalog=dataset.catalog)


def batch_of(trainer: BearTrainer, rows: Dataset) -> dict[str, Tensor]:
    return trainer.data_collator(list(rows))


def given_logps(trainer: BearTrainer, rows: Dataset) -> Tensor:
    """Returns the log-probability of each token of the rows' lists, `(B, T)`, computed by `list_logps`. It is 0 for
    forced tokens."""
    prompts = Ragged.from_lists(
        [[token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label < 0] for row in rows]
    )
    items = torch.from_numpy(Ragged.from_lists(rows["items"]).padded()).unsqueeze(1)
    lists, inputs = list_tokens(trainer.trie, items), left_padded(prompts, 0)
    read = read_completions(trainer.model, *inputs.values(), lists.token_ids, lists.mask, scored=lists.branches)
    exclude = rows["history"] if trainer.args.eval_exclude_history else None
    return list_logps(read, items, trainer.trie, exclude=exclude).squeeze(1)


@pytest.mark.parametrize("excludes", [True, False])
@pytest.mark.parametrize("surface", ["semantic_id", "item_token", "title"])
def test_the_loss_is_that_of_list_logps(
    folder: Path, tmp_path: Path, tokenizer, titles: list[str], surface: str, excludes: bool
) -> None:
    """Compares values and gradients over all tokens that are not forced. A token is forced if it is the only legal
    one. Tokens that lead only to items of the list so far, or of an excluded history, are not legal. In the catalogue
    of titles, two items share a path."""
    options = {**LISTS, "eval_exclude_history": excludes}
    if surface == "title":
        trainer = title_trainer(tmp_path, tokenizer, titles, **options)
    elif surface == "item_token":
        trainer = item_token_trainer(tmp_path, **options)
    else:
        trainer = make_trainer(folder, tmp_path, **options)
    rows = trainer.train_dataset.select(range(min(6, len(trainer.train_dataset))))
    batch = batch_of(trainer, rows)
    trainer.model.eval()
    loss, logps = trainer.compute_loss(trainer.model, batch), given_logps(trainer, rows)
    expected = -logps[logps != 0].mean()
    assert int((batch["labels"] != -100).sum()) == int((logps != 0).sum()) > 0
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    found, wanted = (torch.autograd.grad(one, list(trainer.model.parameters())) for one in (loss, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_only_item_that_is_left_is_forced(tmp_path: Path, tokenizer, titles: list[str]) -> None:
    """The history of the second user excludes all but five items, so the last item of a list of five is forced."""
    trainer = title_trainer(tmp_path, tokenizer, titles, list_length=4, eval_ks=[4])
    (row,) = (row for row in trainer.train_dataset if row["items"] == [4, 6, 0])
    history = [*row["history"], 2, 7]  # two further items, which leaves five
    row = {**row, "history": history, "items": [4, 5, 6, 0, 1]}
    ids = [
        *row["input_ids"][: row["labels"].count(-100)],
        *trainer.prompt_format.paths.take(np.array(row["items"])).values,
    ]
    prompt = row["labels"].count(-100)
    row |= {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}
    labels = trainer.data_collator([row])["labels"][0, prompt:]
    last = len(trainer.prompt_format.paths[1])
    assert bool((labels[-last:] == -100).all()) and bool((labels[:-last] != -100).any())


def test_over_the_vocabulary_all_tokens_and_eos_are_learned(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, softmax="vocabulary", **LISTS)
    rows, eos = trainer.train_dataset, trainer.processing_class.eos_token_id
    whole = [row for row in range(len(rows)) if len(rows["items"][row]) == 3]
    short = [row for row in range(len(rows)) if len(rows["items"][row]) < 3]
    chosen = rows.select([*whole[:2], *short[:2]])
    assert [labels[-1] == eos for labels in chosen["labels"]] == [True, True, False, False]
    batch = batch_of(trainer, chosen)
    loss = trainer.compute_loss(trainer.model.eval(), batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    logits, labels = trainer.model(**inputs).logits[:, :-1], batch["labels"][:, 1:]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_rows_of_single_items_are_unchanged(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path)
    batch = batch_of(trainer, trainer.train_dataset.select(range(2)))
    assert batch.keys() == {"input_ids", "attention_mask", "position_ids", "labels", "trie_nodes"}
    assert trainer.train_dataset.column_names == ["input_ids", "labels", "user", "trie_nodes"]


def test_rows_follow_the_config(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    prompt_format = PromptFormat.for_catalog(dataset.catalog, load_tokenizer(folder / "model"), list_length=3)
    for every_position in (False, True):
        trainer = make_trainer(folder, tmp_path, every_position=every_position, **LISTS)
        rows = build_list_rows(dataset.train, prompt_format, every_position=every_position, max_length=96)
        assert trainer.train_dataset["items"] == rows["items"] and trainer.train_dataset["labels"] == rows["labels"]
    trainer = make_trainer(folder, tmp_path, targets="all", **LISTS)
    rows = build_rows(dataset.train, prompt_format, targets="all", max_length=96)
    assert trainer.train_dataset["labels"] == rows["labels"] and "trie_nodes" in trainer.train_dataset.column_names


@pytest.mark.parametrize(
    "options", [{}, {"targets": "all"}, {"bear_weight": 0.5, "softmax": "vocabulary"}, {"bear_weight": 1}]
)
def test_training_on_lists_moves_every_tensor_and_lists_are_measured(
    folder: Path, dataset: RecDataset, tmp_path: Path, options: dict
) -> None:
    trainer = make_trainer(folder, tmp_path, eval_dataset=dataset.validation, **{**LISTS, **options})
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())
    measured = trainer.evaluate()
    assert {"eval_loss", "eval_ndcg@3", "eval_recall@3", "eval_bear/ce"} <= measured.keys()
    assert all(len(items) == 1 for items in trainer.eval_dataset["items"])  # the split has one target per user


def test_accumulating_changes_nothing(folder: Path, tmp_path: Path) -> None:
    options = {**LISTS, "bear_weight": 1.0}
    whole = make_trainer(folder, tmp_path, **options)
    parts = make_trainer(folder, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, **options)
    whole.train(), parts.train()
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.parametrize("num_beams", [None, 3])
def test_a_run_folder_writes_the_lists_that_the_trainer_ranks(
    folder: Path, dataset: RecDataset, tmp_path: Path, num_beams: int | None
) -> None:
    trainer = make_trainer(folder, tmp_path, eval_num_beams=num_beams, **LISTS)
    trainer.train()
    trainer.save_model()
    recommender = Recommender.from_pretrained(tmp_path)
    ranked = trainer.rank(dataset.test).items
    for row in range(4):
        history = [dataset.catalog.ids[item] for item in dataset.test["history"][row]]
        for k in (3, 2):
            listed = recommender.recommend(history, k=k)
            assert [one.item_id for one in listed] == [dataset.catalog.ids[item] for item in ranked[row, :k]]
    with pytest.raises(ValueError, match="k 4 exceeds the list length 3"):
        recommender.recommend([], k=4)


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"list_length": 3}, r"eval_ks=\[1, 5, 10\] contains a k above list_length=3; lower that k"),
        ({**LISTS, "eval_length_penalty": 1.0}, "eval_length_penalty=1.0 has no effect"),
        (
            {**LISTS, "max_history": 4},
            "max_history=4 has no effect, because the prompts of lists are limited by max_length",
        ),
        ({**LISTS, "targets": "all", "every_position": True}, "every_position=True has no effect"),
        ({"every_position": True}, "every_position=True has no effect"),
    ):
        with pytest.raises(ValueError, match=message):
            BearConfig(str(tmp_path), **QUIET, **options)


def test_lists_that_the_policy_cannot_write_are_refused(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    prompt_format = PromptFormat.for_catalog(dataset.catalog, load_tokenizer(folder / "model"), list_length=3)
    good = build_list_rows(dataset.train, prompt_format, max_length=96).to_list()

    def refused(message: str, **changes: Any) -> None:
        rows = Dataset.from_list([good[0], {**good[1], **changes}])
        with pytest.raises(ValueError, match=message):
            make_trainer(folder, tmp_path, train_dataset=rows, **LISTS)

    first, second, third = good[1]["items"]
    refused("row 1: its list contains an item twice", items=[first, second, first])
    refused(
        "row 1: its list contains an item of the history, or another item with the same title",
        history=[*good[1]["history"], third],
    )
    refused("row 1: its labels are not the paths of its items", items=[second, first, third])
    refused("row 1: its labels are not the paths of its items", items=[first])
    refused("row 1: its labels are not the paths of its items", labels=[-100] * (len(good[1]["labels"]) - 2) + [3, 4])
    refused("a list contains item 60, which is not one of the 60 items of the trie", items=[first, second, 60])
    rows = Dataset.from_list([{**good[1], "history": [*good[1]["history"], third]}])
    make_trainer(folder, tmp_path, train_dataset=rows, eval_exclude_history=False, **LISTS)
