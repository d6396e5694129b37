"""Tests self-play with prompts that name the user. Self-play ranks items for prefixes (histories from the training
split) in parts. Each prefix must be ranked with the prompt of the user whose history it is. Saved parts that were
computed with the prompts of other users must be computed again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trl_rec import RecDataset, prepare
from trl_rec.data import PromptFormat
from trl_rec.data.dataset import split_rows, split_users
from trl_rec.evaluation import rank_histories
from trl_rec.items import TokenTrie
from trl_rec.models import make_model, make_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.schedule import self_play, training_prefixes
from trl_rec.schedule.self_play import self_play_beams


class Setting:
    """A policy whose prompts name users."""

    def __init__(self, dataset: RecDataset) -> None:
        ids = [[f"<ua_{user % 4}>", f"<ub_{user // 4}>"] for user in range(dataset.users.num_rows)]
        catalog = dataset.catalog.with_surface("item_token", user_ids=Ragged.from_lists(ids, object))
        tokenizer = make_tokenizer(catalog)
        self.policy = make_model(tokenizer, hidden_size=16).eval()
        self.prompt_format = PromptFormat.for_catalog(catalog, tokenizer, prompt_head="{user}")
        self.trie, self.padding = TokenTrie.from_catalog(catalog, tokenizer), tokenizer.pad_token_id
        self.prefixes = training_prefixes(dataset.train, max_prompts=25)

    def beams(self, **options: Any) -> np.ndarray:
        arguments = (self.policy, options.pop("prefixes", self.prefixes), self.prompt_format, self.trie)
        return self_play_beams(
            *arguments, pad_token_id=self.padding, num_beams=6, part_size=10, max_length=24, **options
        )


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(prepare("toy", tmp_path_factory.mktemp("self_play") / "data", toy_users=24, toy_items=60))


def test_each_prefix_is_ranked_for_its_user(setting: Setting) -> None:
    histories, users = split_rows(setting.prefixes, "history"), split_users(setting.prefixes)
    options: dict[str, Any] = {"pad_token_id": setting.padding, "top_k": 6, "max_length": 24}
    whole = rank_histories(setting.policy, histories, setting.prompt_format, setting.trie, users=users, **options)
    assert setting.beams().tolist() == whole.items.tolist()
    others = rank_histories(
        setting.policy, histories, setting.prompt_format, setting.trie, users=users[::-1], **options
    )
    assert others.items.tolist() != whole.items.tolist()


def test_parts_of_other_users_are_computed_again(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, calls = setting.beams(folder=tmp_path, key="a"), []
    usual = self_play.rank_histories
    monkeypatch.setattr(
        self_play, "rank_histories", lambda *given, **options: calls.append(1) or usual(*given, **options)
    )
    assert setting.beams(folder=tmp_path, key="a").tolist() == first.tolist() and not calls
    swapped = setting.prefixes.remove_columns("user").add_column("user", split_users(setting.prefixes)[::-1])
    assert setting.beams(prefixes=swapped, folder=tmp_path, key="a").tolist() != first.tolist() and len(calls) == 3
    shared = setting.prompt_format.users.take(np.arange(24)[::-1])
    setting.prompt_format, kept = replace(setting.prompt_format, users=shared), setting.prompt_format
    setting.beams(folder=tmp_path, key="a")
    setting.prompt_format = kept
    assert len(calls) == 6
