"""Tests resumed evaluations. If a pass over the rows of a split is interrupted and then resumed, it gives the same
results as an uninterrupted pass. A resumed pass reuses only the finished rows of a pass of the same kind with the same
inputs."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from tests.conftest import make_model
from tests.processes import run_in_two
from trl_rec.decoding.priors import ArrayPrior, FunctionPrior, PopularityPrior
from trl_rec.evaluation.kept.content_hash import Unidentified, content_hash
from trl_rec.evaluation.kept.files import FINISHED
from trl_rec.evaluation.kept.finished_rows import FinishedRows, discard_finished
from trl_rec.evaluation.rank import map_rows
from trl_rec.evaluation.rankings import RANK
from trl_rec.items import TokenTrie
from trl_rec.ragged import Ragged


LENGTHS = np.array([3, 9, 9, 1, 4, 4, 7, 2, 8, 5, 5])


class Killed(BaseException):
    """Simulates a signal that interrupts a pass."""


class Work:
    """Computes items and scores from row numbers, and records the row numbers. Raises `Killed` after `num_batches`
    batches."""

    def __init__(self, num_batches: float = float("inf")) -> None:
        self.rows: list[int] = []
        self._left = num_batches

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if self._left == 0:
            raise Killed
        self._left -= 1
        self.rows += rows.tolist()
        values = np.empty((len(rows), 2), RANK)
        values["item"] = rows[:, None] + [0, 2**40]
        values["score"] = -rows[:, None] / 3
        return values


def run(
    folder: Path | None,
    work: Callable[[np.ndarray], np.ndarray],
    *,
    batch_size: int = 2,
    seconds: float = 0,
    **of: Any,
) -> np.ndarray:
    finished = None if folder is None else FinishedRows(folder / FINISHED, ("a model",), seconds)
    options: dict[str, Any] = {"width": 2, "dtype": RANK, "desc": "ranking", **of}
    return map_rows(work, LENGTHS, batch_size=batch_size, finished=finished, **options)


@settings(max_examples=15)
@given(st.integers(0, 6), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.0, 1e9]))
def test_an_interrupted_pass_computes_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, kills_after: int, before: int, after: int, seconds: float
) -> None:
    """Depending on `seconds`, rows are written after each batch, or only when the pass is interrupted."""
    folder = tmp_path_factory.mktemp("kept")
    first, second = Work(kills_after), Work()
    try:
        run(folder, first, batch_size=before, seconds=seconds)
    except Killed:
        resumed = run(folder, second, batch_size=after, seconds=seconds)
        assert sorted(first.rows + second.rows) == list(range(len(LENGTHS)))
        assert (resumed == run(None, Work())).all()


def test_a_quick_pass_writes_no_rows_and_a_slow_pass_writes_all_rows(tmp_path: Path, capsys) -> None:
    run(tmp_path, Work(), seconds=20)
    assert not (tmp_path / FINISHED).exists()
    run(tmp_path, Work())
    again = Work()
    run(tmp_path, again)
    assert again.rows == []
    assert "ranking: 11 of 11 rows were already finished by an interrupted evaluation" in capsys.readouterr().out
    discard_finished(tmp_path)
    assert not (tmp_path / FINISHED).exists()


def test_the_rows_of_a_damaged_file_are_computed_again(tmp_path: Path, caplog) -> None:
    run(tmp_path, Work())
    paths = sorted((tmp_path / FINISHED).rglob("*.parquet"))
    paths[0].write_bytes(paths[0].read_bytes()[:-20])
    paths[1].write_text("not Parquet")
    again = Work()
    assert (run(tmp_path, again) == run(None, Work())).all()
    assert len(again.rows) in (3, 4)  # the last batch has one row
    assert f"{paths[0].name} cannot be read" in caplog.text


def test_rows_are_computed_even_if_they_cannot_be_written(tmp_path: Path, caplog) -> None:
    (tmp_path / FINISHED).write_text("a file, not a folder")
    assert (run(tmp_path, Work()) == run(None, Work())).all()
    assert caplog.text.count("cannot save finished rows") == 1


@pytest.mark.parametrize("change", [{"desc": "scoring"}, {"dtype": np.dtype([("item", np.int64), ("score", "f8")])}])
def test_rows_of_another_pass_are_not_used(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path, Work())
    again = Work()
    run(tmp_path, again, **change)
    assert len(again.rows) == len(LENGTHS)


def passes() -> dict[str, Any]:
    """Returns values that passes may depend on. Each value differs from all others."""
    model = make_model()
    moved = deepcopy(model)
    with torch.no_grad():
        weight = moved.model.layers[1].mlp.up_proj.weight
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    turned = deepcopy(model)
    turned.config.rms_norm_eps *= 2
    counts = np.array([3, 1, 2])
    lora = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": "all-linear", "init_lora_weights": False}
    torch.manual_seed(0)
    adapted = get_peft_model(deepcopy(model), LoraConfig(lora_alpha=1, **lora))
    torch.manual_seed(0)
    scaled = get_peft_model(deepcopy(model), LoraConfig(lora_alpha=2, **lora))
    return {
        "model": model,
        "one weight differs by one bit": moved,
        "another configuration": turned,
        "bfloat16": deepcopy(model).bfloat16(),
        "adapter": adapted,
        "another scale": scaled,
        "trie": TokenTrie.from_sequences([[1, 2], [1, 3], [2]]),
        "another item": TokenTrie.from_sequences([[1, 2], [1, 3], [2]], [0, 2, 1]),
        "prior": PopularityPrior(counts),
        "another strength": PopularityPrior(counts, 2.0),
        "other counts": PopularityPrior(counts + 1),
        "another kind": ArrayPrior(counts),
        "rows": Ragged.from_lists([[1, 2], [3]]),
        "other boundaries": Ragged.from_lists([[1], [2, 3]]),
        "texts": ("ab", "c"),
        "other texts": ("a", "bc"),
        "nested": (("ab",), "c"),
        "none": None,
        "false": False,
        "zero": 0,
        "float": 0.0,
        "text": "0",
        "array": np.zeros(1, np.int64),
        "another type": np.zeros(1),
        "another shape": np.zeros((1, 1)),
    }


def test_hashes_are_equal_only_if_the_contents_are_equal() -> None:
    values = passes()
    hashes = {name: content_hash(value) for name, value in values.items()}
    assert len(set(hashes.values())) == len(hashes)
    assert {name: content_hash(deepcopy(value)) for name, value in values.items()} == hashes
    assert content_hash(np.float64(0.5)) == content_hash(0.5)


def test_a_custom_prior_has_no_hash_and_its_rows_are_not_kept(tmp_path: Path, caplog) -> None:
    prior = FunctionPrior(lambda histories: np.ones((len(histories), 3)))
    with pytest.raises(Unidentified):
        content_hash(prior)
    finished = FinishedRows(tmp_path / FINISHED, (prior,), 0.0)
    map_rows(Work(), LENGTHS, width=2, dtype=RANK, desc="ranking", batch_size=2, finished=finished)
    assert not (tmp_path / FINISHED).exists() and not caplog.text


def work_in_two(folder: Path, output: Path) -> None:
    """Makes one pass with two processes. Process 0 is interrupted after two batches, and process 1 after one batch.
    Then both processes resume the pass."""
    state = PartialState(cpu=True)
    killed, resumed = Work(2 - state.process_index), Work()
    with pytest.raises(Killed):
        run(folder, killed)
    state.wait_for_everyone()
    assert (run(folder, resumed) == run(None, Work())).all()
    np.save(output / f"{state.process_index}.npy", np.array([*killed.rows, *resumed.rows], np.int64))
    state.destroy_process_group()


@pytest.mark.slow
def test_two_processes_resume_together(tmp_path: Path) -> None:
    run_in_two("ddp", partial(work_in_two, tmp_path), tmp_path)
    rows = np.concatenate([np.load(tmp_path / f"{process}.npy") for process in range(2)])
    assert sorted(rows) == list(range(len(LENGTHS)))
    again = Work()
    assert (run(tmp_path, again) == run(None, Work())).all() and again.rows == []
