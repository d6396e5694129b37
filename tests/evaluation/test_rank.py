"""Ranking a split in batches or in two processes gives the same results as ranking its rows one at a time."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState

from tests.conftest import make_model, make_tokenizer
from tests.processes import run_in_two
from tests.trainer.runs import with_known_names
from trl_rec.data import PromptFormat, RecDataset, build_rows, load, prepare
from trl_rec.data.dataset import split_rows
from trl_rec.decoding import beam_list, rank_items
from trl_rec.decoding.padding import left_padded
from trl_rec.evaluation import rank_split
from trl_rec.items import TokenTrie


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    return prepare("toy", tmp_path_factory.mktemp("data") / "toy", toy_users=12, toy_items=50).with_surface(
        "item_token"
    )


@pytest.fixture(scope="module")
def saved(dataset: RecDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a tokenizer whose vocabulary contains the item tokens."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer(["a b"], vocab_size=300)
    tokenizer.add_tokens(dataset.catalog.new_tokens)
    tokenizer.save_pretrained(folder)
    make_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    return folder


def load_saved(folder: Path):
    from trl_rec.models import load_model, load_tokenizer

    return load_model(folder), load_tokenizer(folder)


def test_each_row_is_ranked_as_if_it_were_alone(dataset: RecDataset, saved: Path) -> None:
    model, tokenizer = load_saved(saved)
    ranked = rank_split(model, tokenizer, dataset, top_k=5, batch_size=5)
    assert ranked.items.dtype == np.int64 and ranked.scores.dtype == np.float32
    prompts = PromptFormat.for_catalog(dataset.catalog, tokenizer).encode(split_rows(dataset.test, "history"))
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer)
    for row, history in enumerate(dataset.test["history"]):
        prompt = left_padded(prompts.take(np.array([row])), tokenizer.pad_token_id)
        alone = rank_items(model, prompt, trie, num_beams=5, exclude=[history])
        assert ranked.items[row].tolist() == alone.items[0].tolist()
        assert ranked.scores[row] == pytest.approx(alone.scores[0].tolist(), abs=1e-5)
        assert not set(ranked.items[row]) & set(history)


@pytest.mark.parametrize("num_beams", [None, 1, 3])
def test_with_a_list_length_the_ranking_is_the_list_that_the_model_writes(
    dataset: RecDataset, saved: Path, num_beams: int | None
) -> None:
    model, tokenizer = load_saved(saved)
    prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer, list_length=4)
    ranked = rank_split(
        model, tokenizer, dataset, prompt_format=prompt_format, top_k=3, num_beams=num_beams, batch_size=5
    )
    prompts = prompt_format.encode(split_rows(dataset.test, "history"))
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer, lists=True)
    for row, history in enumerate(dataset.test["history"]):
        prompt = left_padded(prompts.take(np.array([row])), tokenizer.pad_token_id)
        expected = beam_list(model, prompt, trie, list_length=4, num_beams=num_beams or 1, exclude=[history])
        assert ranked.items[row].tolist() == expected.items[0, :3].tolist()
        assert ranked.scores[row] == pytest.approx(expected.scores[0, :3].tolist(), abs=1e-5)
        assert not set(ranked.items[row]) & set(history)
    with pytest.raises(ValueError, match="top_k 5 exceeds the list length 4"):
        rank_split(model, tokenizer, dataset, prompt_format=prompt_format, top_k=5)


def test_history_items_are_ranked_too_unless_excluded(dataset: RecDataset, saved: Path) -> None:
    model, tokenizer = load_saved(saved)
    ranked = rank_split(model, tokenizer, dataset, top_k=len(dataset.catalog), exclude_history=False)
    assert (np.sort(ranked.items, 1) == np.arange(len(dataset.catalog))).all()


def rank_a_share(dataset: Path, saved: Path, output: Path) -> None:
    """Calls `rank_split` in one of two processes, and writes the returned ranking, which covers all users."""
    state = PartialState(cpu=True)
    ranked = rank_split(*load_saved(saved), load(dataset).with_surface("item_token"), top_k=4)
    (output / f"{state.process_index}.json").write_text(
        json.dumps([state.num_processes, *(part.tolist() for part in ranked)])
    )
    state.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_same_ranking_as_one(dataset: RecDataset, saved: Path, tmp_path: Path) -> None:
    run_in_two("ddp", partial(rank_a_share, dataset.path, saved), tmp_path)
    model, tokenizer = load_saved(saved)
    expected = rank_split(model, tokenizer, dataset, top_k=4)
    for process in range(2):
        num_processes, items, scores = json.loads((tmp_path / f"{process}.json").read_text())
        assert num_processes == 2 and items == expected.items.tolist()
        np.testing.assert_allclose(scores, expected.scores, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["last", "all"])
def test_a_model_that_trl_trains_on_the_rows_can_recommend(
    dataset: RecDataset, saved: Path, tmp_path: Path, targets: str
) -> None:
    """After overfitting to the sequence of one user, the model ranks nearly every next item of the sequence first."""
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_saved(saved)
    prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer)
    rows = build_rows(dataset.train.select([0]), prompt_format, targets=targets)
    arguments = {
        "max_steps": 60,
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
    }
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "logging_steps": 60, "save_strategy": "no"}
    arguments |= with_known_names({"activation_checkpointing": False})
    config = SFTConfig(str(tmp_path), max_length=None, **arguments, **quiet)
    SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer).train()
    sequence = dataset.train["history"][0] + dataset.train["targets"][0]
    histories = [sequence[:place] for place in range(1, len(sequence))]
    from trl_rec.ragged import Ragged

    prompts = left_padded(prompt_format.encode(Ragged.from_lists(histories)), tokenizer.pad_token_id)
    ranked = rank_items(model, prompts, TokenTrie.from_catalog(dataset.catalog, tokenizer), num_beams=1)
    hits = ranked.items[:, 0] == torch.tensor(sequence[1:])
    assert hits.float().mean() > 0.9
