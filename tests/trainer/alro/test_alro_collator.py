"""Tests batches of rated lists (lists of candidates with a user's ratings of them): the tokens of the lists and of
their answers (the names of the candidates from best to worst), and the orders in which candidates are shown. Within an
epoch, a list is always shown in the same orders. In the next epoch, it is shown in new orders."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from tests.trainer.alro.alro_runs import first_batch, make_folder, make_trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alro")
    make_folder(path)
    return path


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("options", [{}, {"softmax": "vocabulary"}, {"permutation_weight": 0.0}])
def test_an_answer_names_the_candidates_by_rating_in_either_order(folder: Path, tmp_path: Path, options: dict) -> None:
    trainer = make_trainer(folder, tmp_path, **options)
    tokenizer, rows = trainer.processing_class, [trainer.train_dataset[row] for row in range(6)]
    batch = trainer.data_collator(rows)
    texts = tokenizer(trainer.catalog.surfaces, add_special_tokens=False)["input_ids"]
    for number, row in enumerate(rows):
        count = len(row["candidates"])
        assert batch["candidate_mask"][number].tolist() == [True] * count + [False] * (
            batch["ratings"].shape[1] - count
        )
        order = batch["gold_rank"][number, :count].argsort()
        assert sorted(row["ratings"], reverse=True) == batch["ratings"][number][order].tolist()
        seen = set()
        for shown in range(trainer.args.num_orders):
            mask, answer = batch["completion_mask"][number, shown], batch["answer_mask"][number, shown]
            tokens = batch["completion_ids"][number, shown]
            listed, written = tokens[mask & ~answer].tolist(), tokens[answer].tolist()
            ends = [tokenizer.eos_token_id] if "softmax" in options else []
            names = batch["names"][number, shown, :count]
            assert written == names[order].tolist() + ends
            # There is no padding before the end of the answer.
            assert bool((answer & ~mask).sum() == 0) and mask.long().diff().max() <= 0
            for candidate, name in zip(row["candidates"], names.tolist(), strict=True):
                place = listed.index(name)
                assert listed[place + 1 : place + 3] == texts[candidate]  # the name comes before its item
            seen.add(tuple(names.tolist()))
        assert len(seen) == trainer.args.num_orders
        prompt = batch["prompt_ids"][number][batch["prompt_mask"][number]].tolist()
        assert [tokenizer.decode(prompt[-3:-1]), prompt[0]] == [
            tokenizer.decode(texts[row["history"][-1]]),
            tokenizer.bos_token_id,
        ]


def test_the_orders_change_with_the_epoch_and_only_with_it(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path)
    collator, rows = trainer.data_collator, [trainer.train_dataset[row] for row in range(4)]
    first = collator(rows)
    assert len({tuple(one) for one in first["names"][:, 0].tolist()}) > 1  # the orders differ between rows
    collator([trainer.train_dataset[7]])
    assert equal(first, collator(rows))
    alone = collator(rows[2:3])
    assert torch.equal(alone["gold_rank"][0], first["gold_rank"][2, : alone["gold_rank"].shape[1]])
    collator.on_epoch_begin(None, SimpleNamespace(epoch=1.37), None)
    second = collator(rows)
    assert not torch.equal(first["names"], second["names"])
    collator.on_epoch_begin(None, SimpleNamespace(epoch=0.0), None)
    assert equal(first, collator(rows))


def test_persistent_workers_use_the_orders_of_the_new_epoch(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path)
    collator, options = trainer.data_collator, {"num_workers": 1, "persistent_workers": True}
    loader = DataLoader(trainer.train_dataset, batch_size=4, collate_fn=collator, **options)
    epochs = []
    for epoch in range(2):
        collator.on_epoch_begin(None, SimpleNamespace(epoch=float(epoch)), None)
        epochs.append(next(iter(loader)))
    assert equal(epochs[1], collator([trainer.train_dataset[row] for row in range(4)]))
    assert not equal(*epochs)


def test_the_trainer_sets_the_epoch_of_the_collator(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(folder, tmp_path, num_train_epochs=2, max_steps=-1, per_device_train_batch_size=32)
    seen = {}
    collate = type(trainer.data_collator).__call__

    def watch(self, rows):
        seen.setdefault(int(self.epoch), []).extend(row["row"] for row in rows)
        return collate(self, rows)

    monkeypatch.setattr(type(trainer.data_collator), "__call__", watch)
    trainer.train()
    everything = list(range(len(trainer.train_dataset)))
    assert {epoch: sorted(rows) for epoch, rows in seen.items()} == {0: everything, 1: everything}


def test_the_history_is_shortened_until_the_longest_list_fits(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, max_length=40, max_history=None)
    batch = first_batch(trainer)
    longest = batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(-1).amax(1)
    assert longest.max() <= 40 and longest.max() > 37
