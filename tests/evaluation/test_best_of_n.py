"""Tests Best-of-N, which keeps the list with the highest reward among N lists drawn from a policy.
`expected_best` returns the expected value (for example, the NDCG) of the kept list. It is compared with an enumeration
of all ways to choose N of the drawn lists. Also tests how lists are drawn for a split."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.runs import make_folder
from trl_rec import PromptFormat, TokenTrie
from trl_rec.data.dataset import split_rows
from trl_rec.evaluation import draw_lists, evaluate_best_of, evaluate_split
from trl_rec.evaluation.best_of_n import expected_best
from trl_rec.models import load_model, load_tokenizer


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_expected_best_is_the_mean_over_all_choices(rewards: list[int], data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(-5, 5), min_size=len(rewards), max_size=len(rewards)))
    best_of = data.draw(st.integers(1, len(rewards)))
    means = []
    for chosen in combinations(range(len(rewards)), best_of):
        best = max(rewards[number] for number in chosen)
        means.append(np.mean([value for value, reward in zip(values, rewards, strict=True) if reward == best]))
    assert expected_best(np.array([values]), np.array([rewards], float), best_of) == pytest.approx([np.mean(means)])


def test_best_of_one_is_the_mean_and_best_of_all_is_the_maximum() -> None:
    rewards = np.array([[0.1, 0.7, 0.3], [0.0, 0.0, 1.0]])
    assert expected_best(rewards, rewards, 1) == pytest.approx(rewards.mean(1))
    assert expected_best(rewards, rewards, 3) == pytest.approx([0.7, 1.0])
    with pytest.raises(ValueError, match="best_of=4 is not between 1 and the number of sampled lists, 3"):
        expected_best(rewards, rewards, 4)


def test_lists_are_drawn_and_evaluated_for_a_split(tmp_path) -> None:
    dataset = make_folder(tmp_path)
    model, tokenizer = load_model(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer, list_length=4)
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer, lists=True)
    histories = split_rows(dataset.validation, "history")
    options = {"num_lists": 8, "pad_token_id": tokenizer.pad_token_id, "max_length": 96}
    lists = draw_lists(model, histories, prompt_format, trie, **options, batch_size=7)
    assert lists.shape == (len(dataset.validation), 8, 4)
    assert np.array_equal(lists, draw_lists(model, histories, prompt_format, trie, **options, batch_size=64))
    for row, drawn in enumerate(lists):
        for items in drawn:
            assert len({*items}) == 4 and not {*items} & {*histories.take(np.array([row])).values} and items.min() >= 0
    rewards = {"ndcg": 1.0, "mgu": 0.5}
    one, best = (evaluate_best_of(lists, dataset, rewards, best_of=count, split="validation") for count in (1, 8))
    assert best.metrics["reward"] > one.metrics["reward"]
    assert one.metrics["reward"] == pytest.approx(one.metrics["reward/ndcg"] + 0.5 * one.metrics["reward/mgu"])
    assert one.metrics["ndcg@4"] == one.metrics["reward/ndcg"]
    single_lists = [
        evaluate_split(lists[:, number], dataset, split="validation", ks=[4], rewards=rewards) for number in range(8)
    ]
    for name in ("reward", "ndcg@4", "recall@4"):
        assert one.metrics[name] == pytest.approx(np.mean([single.metrics[name] for single in single_lists]))
    assert torch.is_grad_enabled()
