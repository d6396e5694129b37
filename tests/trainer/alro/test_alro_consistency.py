"""Tests the purpose of ALRO's losses: compared with SFT, the answers of the model depend less on the order in which
the candidates are shown, and its NDCG is hardly lower."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from tests.trainer.runs import QUIET
from trl_rec import AlroConfig, AlroTrainer, ItemCatalog
from trl_rec.decoding import rated_tokens
from trl_rec.models import make_model, make_tokenizer
from trl_rec.trainer import build_rated_rows


pytestmark = pytest.mark.slow
NUM_ITEMS = 10
RATINGS = [1.0, 2.0, 3.0, 4.0, 5.0]
# With any permutation weight above 0, each list is shown in two orders. This weight is too small to affect training
# otherwise.
SAME_ORDERS = 1e-12


def world(num_users: int, seed: int, name: str) -> Dataset:
    """Returns users with one rated item in the history and three rated targets. Each item has a base rating, and
    each user's rating differs from it by at most one star."""
    draw, columns = np.random.default_rng(seed), {"user": pa.array(range(num_users), pa.int32())}
    items = [draw.permutation(NUM_ITEMS)[:4] for _ in range(num_users)]
    ratings = [np.clip(1 + some % 5 + draw.integers(-1, 2, 4), 1, 5).astype(float) for some in items]
    columns |= {"history": [some[:1].tolist() for some in items], "targets": [some[1:].tolist() for some in items]}
    columns |= {"history_ratings": [some[:1].tolist() for some in ratings]}
    columns |= {"target_ratings": [some[1:].tolist() for some in ratings]}
    return Dataset(pa.table(columns), split=name)


def make_trainer(folder: Path, seed: int, lambda_weight: float, permutation_weight: float) -> AlroTrainer:
    """Makes a trainer with a small model that names candidates by letters."""
    ids = [str(item) for item in range(NUM_ITEMS)]
    catalog = ItemCatalog(pa.table({"item_id": ids, "title": ids}), surface="item_token")
    tokenizer = make_tokenizer(catalog)
    tokenizer.add_tokens(rated_tokens(catalog, RATINGS, letters=True))
    options = {"letters": True, "num_candidates": 3, "max_length": 32, "eval_num_orders": 4, "eval_ks": [3]}
    options |= {"max_steps": 160, "learning_rate": 0.01, "warmup_steps": 20, "per_device_train_batch_size": 32}
    options |= {
        "save_strategy": "no",
        "per_device_eval_batch_size": 300,
        "activation_checkpointing": False,
        "seed": seed,
    }
    config = AlroConfig(
        str(folder), lambda_weight=lambda_weight, permutation_weight=permutation_weight, **{**QUIET, **options}
    )
    model = make_model(tokenizer, hidden_size=32, dropout=0.0, max_length=64, seed=seed)
    data = {"train_dataset": world(1500, 0, "train"), "processing_class": tokenizer, "catalog": catalog}
    return AlroTrainer(model, config, **data)


@torch.no_grad()
def distance(trainer: AlroTrainer) -> float:
    """Returns the permutation loss between two orders of the same candidates, as a mean over lists of new users."""
    batch = trainer.data_collator(build_rated_rows(world(300, 2, "train"), num_candidates=3).to_list())
    trainer.model.eval()
    return float(trainer.loss_parts(trainer._answers(trainer.model, batch), batch)["permutation"].mean())


def train(folder: Path, seed: int, weights: tuple[float, float]) -> tuple[float, float]:
    """Trains a model, and returns its distance and its NDCG."""
    trainer = make_trainer(folder, seed, *weights)
    trainer.train()
    return distance(trainer), trainer.rank_and_measure(world(300, 1, "test"))["graded_ndcg@3"]


@pytest.mark.long
def test_answers_depend_less_on_the_order_and_ndcg_hardly_changes(tmp_path: Path) -> None:
    """Letters are hard to learn from scratch. At first, a model answers with the letters in the order of the prompt,
    whatever items they name.

    After 160 steps, SFT has overcome this with some seeds and not with others. With each of 8 seeds, the distance of
    SFT was at least 4 times the distance with the permutation loss, and the NDCG of SFT was higher by at most .004.
    """
    sft, sft_ndcg = train(tmp_path, 2, (0.0, SAME_ORDERS))
    for weights in ((0.0, 3.0), (10.0, 3.0)):
        found, ndcg = train(tmp_path, 2, weights)
        assert found < sft / 2 and ndcg > sft_ndcg - 0.02
