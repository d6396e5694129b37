"""Tests BLADE's reference lists. They are sampled for each prompt, so that the reward of a rollout can be ranked among
the rewards of these lists. By default, they are drawn once, before training, and then reused. When a killed run is
started again, it draws only the missing lists. The batch size does not change the lists."""

import random
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.blade import blade_runs
from tests.trainer.blade.blade_runs import logged, other_model
from tests.trainer.runs import QUIET, make_folder
from trl_rec.parts import PartStore
from trl_rec.trainer import BladeConfig, BladeTrainer
from trl_rec.trainer.blade import reference_lists
from trl_rec.trainer.blade import trainer as blade_trainer


make_trainer = partial(blade_runs.make_trainer, max_prompts=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("references")
    make_folder(path)
    return path


@pytest.fixture
def drawn_rows(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Collects the rows of each batch for which reference lists or rollouts are drawn. Reference lists are stored
    in parts; this fixture sets the size of a part to five rows, and makes trainers draw the parts in order."""
    rows, draw = [], blade_trainer.sample_item_lists
    monkeypatch.setattr(reference_lists, "PART_SIZE", 5)
    monkeypatch.setattr(reference_lists.SystemRandom, "shuffle", lambda generator, parts: None)

    def watch(*given: Any, **options: Any) -> Any:
        rows.append(list(options["rows"]))
        return draw(*given, **options)

    monkeypatch.setattr(blade_trainer, "sample_item_lists", watch)
    return rows


def references(trainer: BladeTrainer) -> list:
    trainer.draw_references()
    return trainer.train_dataset["references"]


def parts(output: Path) -> list[Path]:
    return sorted(output.glob("references-*/*"))


def test_lists_are_drawn_once_in_parts(folder: Path, tmp_path: Path, drawn_rows: list) -> None:
    told = references(make_trainer(folder, tmp_path, reference_batch_size=3))
    assert drawn_rows == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9], [10, 11, 12], [13, 14], [15]]
    assert [path.name for path in parts(tmp_path)] == [f"part-0000{number}.parquet" for number in range(4)]
    assert np.array(told).shape == (16, 8, 3) and len({tuple(map(tuple, row)) for row in told}) == 16
    drawn_rows.clear()
    again = make_trainer(folder, tmp_path, reference_batch_size=3)
    assert references(again) == told == references(again) and not drawn_rows


def test_the_batch_size_does_not_change_the_lists(folder: Path, tmp_path: Path, drawn_rows: list) -> None:
    told = [
        references(make_trainer(folder, tmp_path / str(size), reference_batch_size=size)) for size in (1, 2, 3, 64)
    ]
    assert told[0] == told[1] == told[2] == told[3]


def test_lists_are_reused_if_weights_rows_and_sampling_are_equal(
    folder: Path, tmp_path: Path, drawn_rows: list
) -> None:
    told = references(make_trainer(folder, tmp_path))
    cases: list[tuple[dict[str, Any], bool]] = [
        (
            {"rewards": {"hit": 1.0, "ild": 0.5}, "target": "rank", "beta": 0.3, "best_of": 3, "learning_rate": 0.7},
            True,
        ),
        ({"num_generations": 4, "num_iterations": 2, "per_device_train_batch_size": 8}, True),
        ({"seed": 7}, False),
        ({"temperature": 0.9}, False),
        ({"num_references": 9}, False),
        ({"list_length": 4}, False),
        ({"eval_exclude_history": False}, False),
        ({"max_prompts": 15}, False),
        ({"every_position": True}, False),
        ({"max_length": 40}, False),
        ({"prompt_tail": "<eos>"}, False),
        ({"model": "other"}, False),
        ({"ref_model": "loaded", "model": "other"}, True),
    ]
    for options, found in cases:
        drawn_rows.clear()
        before = len(list(tmp_path.glob("references-*")))
        given = {**options, "model": other_model(folder) if "model" in options else None}
        other = references(make_trainer(folder, tmp_path, **given))
        assert bool(drawn_rows) != found and (other == told or not found), options
        assert len(list(tmp_path.glob("references-*"))) == before + (not found), options


def test_runs_with_a_common_reference_dir_draw_its_lists_once(folder: Path, tmp_path: Path, drawn_rows: list) -> None:
    shared = str(tmp_path / "shared")
    told = references(make_trainer(folder, tmp_path / "one", reference_dir=shared))
    assert drawn_rows and parts(Path(shared)) and not parts(tmp_path / "one")
    drawn_rows.clear()
    assert references(make_trainer(folder, tmp_path / "two", reference_dir=shared, target="best_of_n")) == told
    assert not drawn_rows and not parts(tmp_path / "two")


def test_runs_that_draw_at_the_same_time_share_the_work(
    folder: Path, tmp_path: Path, drawn_rows: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    told = references(make_trainer(folder, tmp_path / "alone"))
    drawn_rows.clear()
    one = make_trainer(folder, tmp_path / "one", reference_dir=str(shared))
    write = PartStore.write

    def write_as_two_runs(store: PartStore, part: range, lists: np.ndarray) -> None:
        write(store, part, lists)
        other = store.parts[-1]  # another run starts with the last part
        write(store, other, np.array(told)[other])

    monkeypatch.setattr(PartStore, "write", write_as_two_runs)
    assert references(one) == told
    assert drawn_rows == [[*range(5)], [*range(5, 10)], [*range(10, 15)]]


def test_the_order_of_the_parts_is_not_drawn_from_the_seeded_generators(folder: Path, tmp_path: Path) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    references(make_trainer(folder, tmp_path))
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_processes_divide_the_parts_that_the_main_process_found_missing(
    folder: Path, tmp_path: Path, drawn_rows: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run may write parts into a common folder while the processes of a run look for missing ones."""
    trainer = make_trainer(folder, tmp_path)
    store = reference_lists.reference_store(tmp_path, trainer.train_dataset, "key")
    found = store.missing()
    store.write(found[0], np.zeros((len(found[0]), 8, 3)))  # written after the main process has looked
    monkeypatch.setattr(reference_lists, "on_main_process", lambda decide: found)
    accelerator = SimpleNamespace(
        process_index=1, num_processes=2, is_main_process=False, device="cpu", wait_for_everyone=lambda: None
    )
    reference_lists.draw_reference_lists(
        store,
        trainer.train_dataset,
        lambda batch: torch.zeros(len(batch["row"]), 8, 3, dtype=torch.long),
        trainer.data_collator,
        accelerator,
        batch_size=64,
    )
    assert [part in store.missing() for part in found] == [False, False, True, False]


def test_a_killed_run_draws_only_the_missing_lists(
    folder: Path, tmp_path: Path, drawn_rows: list, monkeypatch
) -> None:
    whole = references(make_trainer(folder, tmp_path / "whole"))
    write, written = PartStore.write, []

    def die(store: PartStore, part: range, lists: np.ndarray) -> None:
        written.append(part)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(store, part, lists)

    drawn_rows.clear()
    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "write", die)
        with pytest.raises(KeyboardInterrupt):
            references(make_trainer(folder, tmp_path / "cut"))
    assert drawn_rows == [[*range(5)], [*range(5, 10)], [*range(10, 15)]] and len(parts(tmp_path / "cut")) == 2
    parts(tmp_path / "cut")[0].with_name(".part-00002.parquet.0.tmp").write_bytes(b"PAR1")  # as a kill may leave it
    drawn_rows.clear()
    assert references(make_trainer(folder, tmp_path / "cut")) == whole
    assert drawn_rows == [[*range(10, 15)], [15]]


@pytest.mark.parametrize("damage", ["cut", "changed", "short", "other"])
def test_a_damaged_part_is_drawn_again(
    folder: Path, tmp_path: Path, drawn_rows: list, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = references(make_trainer(folder, tmp_path))
    path, last = parts(tmp_path)[1], parts(tmp_path)[3]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "changed":
        data = bytearray(path.read_bytes())
        data[len(data) // 4] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "short":
        path.write_bytes(last.read_bytes())  # one row instead of five
    else:
        path.write_text("not Parquet")
    drawn_rows.clear()
    assert references(make_trainer(folder, tmp_path)) == told
    assert drawn_rows == [[*range(5, 10)]] and "part-00001.parquet" in caplog.text and "computed again" in caplog.text


def test_a_part_that_a_process_cannot_see_is_an_error(folder: Path, tmp_path: Path, monkeypatch) -> None:
    trainer = make_trainer(folder, tmp_path)
    monkeypatch.setattr(PartStore, "write", lambda store, part, lists: None)
    with pytest.raises(ValueError, match="part-00000.parquet is missing; all processes must share the same folder"):
        trainer.train()


def test_a_run_that_reuses_reference_lists_learns_the_same(folder: Path, tmp_path: Path) -> None:
    told = [make_trainer(folder, tmp_path, max_steps=2) for _ in range(2)]
    told[0].train(), told[1].train()
    for name in ("reward", "kl", "blade/quantile", "grad_norm"):
        assert logged(told[0], name) == logged(told[1], name)


def test_the_best_reference_list_of_each_prompt_becomes_a_training_row(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, rewards={"recall": 1.0, "hit": -0.1}, reference_batch_size=5)
    rows, prompts = trainer.best_reference_rows(), trainer.train_dataset
    assert rows["user"] == prompts["user"] and rows["history"] == prompts["history"]
    for row, prompt in zip(rows, prompts, strict=True):
        hits = [len({*items} & {*prompt["targets"]}) for items in prompt["references"]]
        assert row["items"] == prompt["references"][hits.index(max(hits))]
        completion = [token for item in row["items"] for token in trainer.prompt_format.paths[item].tolist()]
        completion.append(trainer.processing_class.eos_token_id)
        assert row["input_ids"] == prompt["prompt_ids"] + completion
        assert row["labels"] == [-100] * len(prompt["prompt_ids"]) + completion
    assert max(len({*row["items"]} & {*prompt["targets"]}) for row, prompt in zip(rows, prompts, strict=True)) > 0


def test_references_are_drawn_again_from_the_current_policy(folder: Path, tmp_path: Path, drawn_rows: list) -> None:
    """The run has four steps, numbered from 0, and draws reference lists twice. Steps 2 and 3 use the lists of the
    second draw."""
    options = {"reference_draws": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 3, "target": "best_of_n"}
    once = make_trainer(folder, tmp_path / "once", max_steps=4, target="best_of_n")
    once.train()
    trainer = make_trainer(folder, tmp_path / "twice", **options)
    trainer.train()
    assert len(list((tmp_path / "twice").glob("references-*"))) == 2
    assert logged(trainer, "blade/quantile")[:2] == logged(once, "blade/quantile")[:2]
    assert logged(trainer, "blade/quantile")[2:] != logged(once, "blade/quantile")[2:]
    first = np.array(trainer.train_dataset["references"])
    assert trainer._redrawn.shape == first.shape and (trainer._redrawn != first).any()

    # The second draw is from the policy after two steps. A run of two steps ends with the same policy.
    half = make_trainer(folder, tmp_path / "half", max_steps=2, target="best_of_n")
    half.train()
    with half._generating(half.model) as policy:
        batch = half.data_collator([half.train_dataset[row] for row in range(4)])
        seed = (half.args.seed, blade_trainer.REFERENCE_SEED, 1)
        lists = half._draw(policy, batch, half.args.num_references, seed, batch["row"].tolist())
    np.testing.assert_array_equal(trainer._redrawn[:4], lists.numpy())

    # A run that resumes at step 3 reads the lists of the second draw.
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    shutil.rmtree(tmp_path / "twice" / "checkpoint-4")
    drawn_rows.clear()
    resumed = make_trainer(folder, tmp_path / "twice", **options, overwrite=False)
    resumed.train(resume_from_checkpoint=True)
    assert len(drawn_rows) == 1  # the rollouts of the last step
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, weights[name]), name

    # If the lists of the second draw are missing, the run cannot be resumed at step 3.
    shutil.rmtree(tmp_path / "twice" / "checkpoint-4")
    for part in parts(tmp_path / "twice"):
        if part.parent.name not in {path.parent.name for path in parts(tmp_path / "once")}:
            part.unlink()
    with pytest.raises(ValueError, match="drawn at step 2 are missing in .*; remove the checkpoints after step 2"):
        make_trainer(folder, tmp_path / "twice", **options, overwrite=False).train(resume_from_checkpoint=True)


def test_drawing_again_needs_a_target_with_references(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reference_draws=2 has no effect with target=rank"):
        BladeConfig(str(tmp_path), target="rank", reference_draws=2, **QUIET)
