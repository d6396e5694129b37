"""Tests BEAR with prompts that name the user by a semantic ID."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.runs import losses, make_folder, make_trainer
from trl_rec import RecDataset, Recommender, load
from trl_rec.evaluation import rank_split
from trl_rec.models import load_model, load_tokenizer, make_model, make_tokenizer
from trl_rec.ragged import Ragged


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of `make_folder` with semantic IDs of users. Some of these IDs belong to two users."""
    path = tmp_path_factory.mktemp("users")
    catalog = make_folder(path).catalog
    ids = [[f"<ua_{user % 5}>", f"<ub_{user % 4}>"] for user in range(24)]
    catalog = catalog.with_surface("semantic_id", user_ids=Ragged.from_lists(ids, object))
    catalog.save(path / "data" / "catalog")
    tokenizer = make_tokenizer(catalog)
    tokenizer.save_pretrained(path / "model")
    make_model(tokenizer, hidden_size=16, dropout=0.0, max_length=256).save_pretrained(path / "model")
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> RecDataset:
    return load(folder / "data")


def recommended(recommender: Recommender, history: list[int], user: int | None) -> list[tuple[str, float]]:
    ids = [recommender.catalog.ids[item] for item in history]
    return [(one.item_id, one.score) for one in recommender.recommend(ids, k=5, user=user)]


@pytest.mark.parametrize("options", [{"targets": "all", "max_length": 40}, {"targets": "last"}, {"list_length": 5}])
def test_a_run_whose_prompts_name_users_recommends_what_it_ranks(
    folder: Path, dataset: RecDataset, tmp_path: Path, options: dict[str, Any]
) -> None:
    trainer = make_trainer(
        folder, tmp_path, prompt_head="{user}", eval_ks=[5], eval_dataset=dataset.validation, **options
    )
    trainer.train()
    assert np.isfinite(losses(trainer)).all() and "eval_loss" in trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card()
    k = options.get("list_length", 10)  # a model that writes lists recommends at most `list_length` items
    assert f"recommend(history, k={k}, user=0)" in (tmp_path / "README.md").read_text()
    recommender, ranked = Recommender.from_pretrained(tmp_path), trainer.rank(dataset.test).items
    for row in range(3):
        user, history = dataset.test["user"][row], dataset.test["history"][row]
        listed = recommended(recommender, history, user)
        assert [item for item, _ in listed] == [dataset.catalog.ids[item] for item in ranked[row]]
        assert listed != recommended(recommender, history, user + 1)  # another user with the same history
    with pytest.raises(ValueError, match="the prompt names the user, but no user was given"):
        recommended(recommender, [0], None)
    with pytest.raises(ValueError, match="user 24 has no semantic ID; choose a user from 0 to 23"):
        recommended(recommender, [0], 24)
    again = rank_split(
        load_model(tmp_path),
        load_tokenizer(tmp_path),
        dataset,
        prompt_format=recommender.prompt_format,
        top_k=5,
        num_beams=trainer.args.eval_num_beams,
        max_length=trainer.args.max_length,
    )
    assert again.items.tolist() == ranked.tolist()


def test_naming_the_user_in_the_prompt_adds_only_the_tokens_of_the_user(folder: Path, tmp_path: Path) -> None:
    named, plain = (make_trainer(folder, tmp_path, targets="all", prompt_head=head) for head in ("{user}", None))
    assert len(named.train_dataset) == len(plain.train_dataset)
    for row, other in zip(named.train_dataset, plain.train_dataset, strict=True):
        assert row["input_ids"][:1] + row["input_ids"][3:] == other["input_ids"]
        assert row["trie_nodes"][:1] + row["trie_nodes"][3:] == other["trie_nodes"]
