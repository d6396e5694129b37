"""Tests checkpoints and run folders in adverse conditions: damaged files, checkpoints of other runs, runs that would
replace an earlier run, two runs in one folder, interrupts, and a full disk."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Trainer

from tests.processes import log_of, run_alone, start
from tests.robustness.attacks import contents
from tests.trainer.killing import newest_complete, wait_until
from tests.trainer.runs import make_folder, make_trainer
from trl_rec import BearTrainer, SoftmaxDPOConfig
from trl_rec.models import load_model
from trl_rec.scripts.running import run
from trl_rec.trainer.base.saving.checkpoints import MARK
from trl_rec.trainer.base.saving.output import NotWrittenError, writing


SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "overwrite": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes the runs `run` and `strange`, each with the checkpoints 2 and 4. They have different seeds. `run` starts
    from the model in `model`, and `strange` from the model in `other`, which has other weights."""
    folder = tmp_path_factory.mktemp("world")
    make_folder(folder)
    make_trainer(folder, folder / "run", **SAVING).train()
    other = load_model(folder / "model")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    other.save_pretrained(folder / "other")
    make_trainer(folder, folder / "strange", model=other, seed=1, **SAVING).train()
    return folder


@pytest.fixture
def output(world: Path, tmp_path: Path) -> Path:
    """Copies the run, so that a test may damage the copy."""
    return Path(shutil.copytree(world / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def shared(world: Path) -> BearTrainer:
    """Makes a trainer that never trains. Tests check from which checkpoint it would resume, or why it would not."""
    return make_trainer(world, world / "run", **SAVING)


def started(trainer: Any, monkeypatch: pytest.MonkeyPatch, resume: str | bool | None = True) -> str | None:
    """Returns the checkpoint from which the trainer would resume."""
    given: list[str | None] = []
    monkeypatch.setattr(Trainer, "train", lambda self, checkpoint=None, *others: given.append(checkpoint))
    trainer.train(resume_from_checkpoint=resume)
    return given[0]


# If the newest checkpoint is damaged, a resume uses the one before it, and says why.

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    """Fills the file with zeros, as can happen if the power fails before the content reaches the disk."""
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": cut,
    "zeros": zero,
    "another run's": lambda path: shutil.copy(path.parents[2] / "strange" / "checkpoint-4" / path.name, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_resume_skips_a_damaged_checkpoint_and_uses_the_one_before(
    name: str, damage: str, world: Path, output: Path, shared: BearTrainer, monkeypatch, caplog
) -> None:
    shutil.copytree(world / "strange", output.parent / "strange")
    before = (output / "checkpoint-4" / name).read_bytes()
    DAMAGES[damage](output / "checkpoint-4" / name)
    if (output / "checkpoint-4" / name).is_file() and before == (output / "checkpoint-4" / name).read_bytes():
        pytest.skip("both runs wrote the same bytes")  # such as the state of a constant learning rate schedule
    monkeypatch.setattr(shared.args, "output_dir", str(output))
    assert started(shared, monkeypatch) == str(output / "checkpoint-2")
    told = "is missing" if damage == "missing" else "has changed since it was written"
    assert f"checkpoint-4 is skipped: the file {name} {told}" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
@pytest.mark.parametrize("name", FILES)
def test_files_of_a_checkpoint_with_an_empty_mark_are_checked(
    name: str, damage: str, output: Path, shared: BearTrainer, monkeypatch, caplog
) -> None:
    """The mark of a checkpoint is a file. It records which run wrote the checkpoint, and lists the files that a resume
    reads. Earlier versions wrote an empty mark."""
    for checkpoint in output.glob("checkpoint-*"):
        (checkpoint / MARK).write_text("")
    DAMAGES[damage](output / "checkpoint-4" / name)
    monkeypatch.setattr(shared.args, "output_dir", str(output))
    assert started(shared, monkeypatch) == str(output / "checkpoint-2")
    assert "checkpoint-4 is skipped" in caplog.text
    assert "checkpoint-2 does not record which run wrote it" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '{"files": 3}', "\0\0\0"])
def test_a_checkpoint_with_a_damaged_mark_is_skipped(
    content: str, output: Path, shared: BearTrainer, monkeypatch, caplog
) -> None:
    (output / "checkpoint-4" / MARK).write_text(content)
    monkeypatch.setattr(shared.args, "output_dir", str(output))
    assert started(shared, monkeypatch) == str(output / "checkpoint-2")
    assert "the file complete has changed since it was written" in caplog.text


def test_without_a_whole_checkpoint_nothing_is_replaced(output: Path, shared: BearTrainer, monkeypatch) -> None:
    for step in (2, 4):
        (output / f"checkpoint-{step}" / "optimizer.pt").unlink()
    before = contents(output)
    monkeypatch.setattr(shared.args, "output_dir", str(output))
    with pytest.raises(ValueError, match="checkpoint-4 is damaged .the file optimizer.pt is missing.; to start"):
        shared.train(resume_from_checkpoint=True)
    assert contents(output) == before


def test_checkpoints_of_weights_alone_cannot_be_resumed(world: Path, tmp_path: Path) -> None:
    options = {**SAVING, "save_only_model": True}
    make_trainer(world, tmp_path / "run", **options).train()
    with pytest.raises(ValueError, match="checkpoint-4 is damaged .no file contains its optimizer state"):
        make_trainer(world, tmp_path / "run", **options).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("name", FILES)
def test_a_named_checkpoint_has_to_be_whole(name: str, output: Path, shared: BearTrainer) -> None:
    (output / "checkpoint-4" / name).unlink()
    with pytest.raises(ValueError, match=f"checkpoint-4 is not a complete checkpoint: the file {name} is missing"):
        shared.train(resume_from_checkpoint=str(output / "checkpoint-4"))


def test_a_checkpoint_that_does_not_exist_is_named(tmp_path: Path, shared: BearTrainer) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint .*checkpoint-7"):
        shared.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


def test_other_files_of_a_checkpoint_may_change(output: Path, shared: BearTrainer, monkeypatch) -> None:
    for name in ("README.md", "tokenizer.json", "recommender.json", "training_args.bin"):
        (output / "checkpoint-4" / name).unlink(missing_ok=True)
    monkeypatch.setattr(shared.args, "output_dir", str(output))
    assert started(shared, monkeypatch) == str(output / "checkpoint-4")


# Runs that differ from the one that wrote the checkpoint.


@dataclass(frozen=True)
class Change:
    """Changed settings of a resumed run, and a part of the error's message. The part is empty if the change is
    allowed."""

    options: dict[str, Any] = field(default_factory=dict)
    says: str = ""


REFUSED = [
    Change({"learning_rate": 0.2}, r"learning_rate \(0.1 there, 0.2 now\)"),
    Change({"lr_scheduler_type": "linear"}, "lr_scheduler_type"),
    Change({"warmup_steps": 1}, "warmup_steps"),
    Change({"optim": "adamw_torch"}, "optim "),
    Change({"weight_decay": 0.1}, "weight_decay"),
    Change({"max_grad_norm": 2.0}, "max_grad_norm"),
    Change({"seed": 1}, "seed"),
    Change({"data_seed": 1}, "data_seed"),
    Change({"train_sampling_strategy": "sequential"}, "train_sampling_strategy"),
    Change({"per_device_train_batch_size": 8}, r"rows per step of all processes \(4 there, 8 now\)"),
    Change({"gradient_accumulation_steps": 2}, "rows per step of all processes"),
    Change({"dataloader_drop_last": True}, "dataloader_drop_last"),
    Change({"neftune_noise_alpha": 1.0}, "neftune_noise_alpha"),
    Change({"max_length": 64}, "column input_ids"),
    Change({"bear_weight": 0.5}, "bear_weight"),
    Change({"sharpness": 1.0}, "sharpness"),
    Change({"softmax": "vocabulary"}, "softmax"),
    Change({"prompt_tail": " next:"}, "input_ids"),
    Change({"targets": "all"}, "number of training rows"),
]
ALLOWED = [
    Change({"max_steps": 8}),
    Change({"max_steps": -1, "num_train_epochs": 2}),
    Change({"logging_steps": 3, "logging_first_step": True}),
    Change({"save_steps": 3, "save_total_limit": 1}),
    Change({"eval_ks": [2], "eval_num_beams": 4, "max_users": 3}),
    Change({"per_device_eval_batch_size": 2}),
    Change({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    Change({"activation_checkpointing": True}),
    Change({"overwrite": True}),
    Change({"run_name": "again"}),
]


def name_of(change: Change) -> str:
    return " ".join(change.options)


@pytest.mark.parametrize("change", REFUSED, ids=name_of)
def test_a_setting_that_affects_the_weights_may_not_change(change: Change, world: Path) -> None:
    before = contents(world / "run")
    trainer = make_trainer(world, world / "run", **{**SAVING, **change.options})
    with pytest.raises(ValueError, match=f"checkpoint-4 belongs to a run that differs in .*{change.says}"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=f"checkpoint-2 belongs to a run that differs in .*{change.says}"):
        trainer.train(resume_from_checkpoint=str(world / "run" / "checkpoint-2"))
    assert contents(world / "run") == before


@pytest.mark.parametrize("change", ALLOWED, ids=name_of)
def test_other_settings_may_change(change: Change, world: Path, monkeypatch) -> None:
    trainer = make_trainer(world, world / "run", **{**SAVING, **change.options})
    assert started(trainer, monkeypatch) == str(world / "run" / "checkpoint-4")


def test_other_rows_other_weights_and_an_adapter_are_another_run(world: Path) -> None:
    rows = make_trainer(world, world / "run", **SAVING).train_dataset
    other: dict[str, dict[str, Any]] = {
        "number of training rows": {"train_dataset": rows.select(range(10))},
        "column input_ids": {"train_dataset": rows.select([1, 0, *range(2, len(rows))])},
        "weights of the model": {"model": load_model(world / "other")},
        r"model config attention_dropout \(0.0 there, 0.2 now\)": {
            "model": load_model(world / "model", attention_dropout=0.2)
        },
        "weights of the model before": {"peft_config": LoraConfig(r=2, target_modules="all-linear")},
    }
    for says, options in other.items():
        with pytest.raises(ValueError, match=f"belongs to a run that differs in .*{says}"):
            make_trainer(world, world / "run", **SAVING, **options).train(resume_from_checkpoint=True)


def test_an_adapter_may_start_at_other_random_weights_but_not_from_another_base(
    world: Path, tmp_path: Path, monkeypatch
) -> None:
    def make(base: str, rank: int = 2) -> BearTrainer:
        model = get_peft_model(load_model(world / base), LoraConfig(r=rank, target_modules="all-linear"))
        return make_trainer(world, tmp_path / "run", model=model, **SAVING)

    make("model").train()
    torch.rand(3)  # so that the next adapter is initialised differently
    with pytest.raises(ValueError, match="differs in adapter default of the model"):
        make("model", rank=4).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="differs in weights of the model"):
        make("other").train(resume_from_checkpoint=True)
    assert started(make("model"), monkeypatch) == str(tmp_path / "run" / "checkpoint-4")


def test_rows_are_compared_by_content(world: Path, monkeypatch) -> None:
    """It does not matter how the rows are stored: `again` is in memory, and `turned` stores the rows in reverse order
    and restores their order by a mapping of indices."""
    rows = make_trainer(world, world / "run", **SAVING).train_dataset
    again = Dataset.from_dict(rows.to_dict(), features=rows.features)
    turned = rows.select(range(len(rows) - 1, -1, -1)).flatten_indices().select(range(len(rows) - 1, -1, -1))
    for same in (again, turned):
        trainer = make_trainer(world, world / "run", train_dataset=same, **SAVING)
        assert started(trainer, monkeypatch) == str(world / "run" / "checkpoint-4")


def test_the_same_trainer_may_resume_itself(world: Path, tmp_path: Path) -> None:
    """The weights of the model have changed since the run began, because the trainer has trained it."""
    trainer = make_trainer(world, tmp_path / "run", **SAVING)
    trainer.train()
    trainer.args.max_steps = 6
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6


def test_changed_intervals_take_effect_after_a_resume(output: Path, world: Path) -> None:
    trainer = make_trainer(world, output, **{**SAVING, "save_steps": 3, "logging_steps": 4}, max_steps=9)
    trainer.train(resume_from_checkpoint=True)
    assert {path.name for path in output.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (2, 4, 6, 9)}
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry][4:] == [8]


def test_a_moving_reference_is_refused_since_it_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sync_ref_model=True changes the reference .*; leave it out"):
        SoftmaxDPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", sync_ref_model=True)


# Runs that start from scratch in a folder that another run has used.


def test_work_of_another_run_is_replaced_only_on_request(output: Path, world: Path) -> None:
    before = contents(output)
    with pytest.raises(ValueError, match=r"contains the work of an earlier run \(checkpoint-4\); set resume_from"):
        make_trainer(world, output, **SAVING).train()
    assert contents(output) == before

    # Files that no run writes are kept. The old weights are removed.
    (output / "notes.txt").write_text("mine")
    (output / "data").mkdir()
    (output / "adapter_model.safetensors").write_bytes(b"old")
    (output / MARK).write_text("{}")  # the mark of a finished stage
    make_trainer(world, output, **{**SAVING, "overwrite": True, "max_steps": 3, "seed": 7}).train()
    assert (output / "notes.txt").read_text() == "mine" and (output / "data").is_dir()
    assert not (output / "adapter_model.safetensors").exists() and not (output / MARK).exists()
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}


def test_a_run_without_checkpoints_is_not_replaced_either(world: Path, tmp_path: Path) -> None:
    make_trainer(world, tmp_path / "run", save_strategy="no").save_model()
    with pytest.raises(ValueError, match=r"the work of an earlier run \(model.safetensors\)"):
        make_trainer(world, tmp_path / "run", save_strategy="no", overwrite=False).train()


def test_nothing_is_removed_before_the_first_step(output: Path, world: Path, monkeypatch) -> None:
    before = contents(output)
    trainer = make_trainer(world, output, **{**SAVING, "overwrite": True})

    def fail(*arguments: object) -> None:
        raise ValueError("no optimizer")

    monkeypatch.setattr(trainer, "create_optimizer", fail)
    with pytest.raises(ValueError, match="no optimizer"):
        trainer.train()
    assert contents(output) == before


def test_the_folder_of_the_model_itself_is_not_replaced(world: Path, tmp_path: Path) -> None:
    start_folder = Path(shutil.copytree(world / "model", tmp_path / "model"))
    trainer = make_trainer(world, start_folder, model=load_model(start_folder), save_strategy="no")
    with pytest.raises(ValueError, match="is the folder that the model was loaded from"):
        trainer.train()


def test_a_resume_in_an_empty_folder_starts_from_scratch(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(world, tmp_path / "new", **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


# Two runs at once, an interrupt, and a full disk.


def train_in(world: Path, options: dict[str, Any], output: Path) -> None:
    """Trains as a script does: an error is printed as one sentence."""

    def main(argv: list[str]) -> None:
        limit = options.pop("limit", None)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        trainer = make_trainer(world, output, **{**SAVING, **options})
        trainer.train(resume_from_checkpoint=True)
        trainer.save_model()

    run("bear", main, [])


def sentences(output: Path) -> list[str]:
    """Returns the messages that the processes printed, after checking that none is a traceback."""
    log = output.with_suffix(".log").read_text()
    assert "Traceback" not in log, log
    return [line for line in log.splitlines() if line.startswith("trl-rec bear: ")]


def ended(process: Any) -> int:
    process.join(60)
    assert process.exitcode is not None, "the process did not end"
    return int(process.exitcode)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_in_a_sentence_that_says_how_to_resume(
    number: signal.Signals, status: int, world: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    process = start(partial(train_in, world, {"max_steps": 1000}), output)
    wait_until(lambda: newest_complete(output) >= 2, process, output)
    os.kill(process.pid, number)
    assert ended(process) == status, log_of(output)
    (told,) = sentences(output)
    step = newest_complete(output)
    pattern = r"trl-rec bear: interrupted after step \d+; set resume_from_checkpoint to true to continue from (.*)"
    assert re.fullmatch(pattern, told)[1] == str(output / f"checkpoint-{step}")

    run_alone(partial(train_in, world, {"max_steps": step + 1}), output)
    assert (
        json.loads((output / f"checkpoint-{step + 1}" / "trainer_state.json").read_text())["global_step"] == step + 1
    )


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder_and_a_killed_run_leaves_no_lock(world: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(partial(train_in, world, {"max_steps": 1000}), output)
    wait_until(lambda: newest_complete(output) >= 2, process, output)
    for options in ({"overwrite": True}, {}):
        trainer = make_trainer(world, output, **{**SAVING, **options})
        with pytest.raises(ValueError, match="another process .* is writing to .*run"):
            trainer.train(resume_from_checkpoint=not options)
    process.kill()
    process.join()
    step = newest_complete(output)
    make_trainer(world, output, **SAVING, max_steps=step + 1).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (OSError(errno.EACCES, "Permission denied"), "make .*/run writable"),
        (SafetensorError("I/O error: Read-only file system (os error 30)"), "make .*/run writable"),
        (SafetensorError("I/O error: File too large (os error 27)"), "free some space"),
    ],
)
def test_the_remedy_depends_on_why_a_folder_could_not_be_written(
    error: Exception, remedy: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(NotWrittenError, match=f"run/model could not be written .*; {remedy}"),
        writing(tmp_path / "run" / "model", tmp_path / "run"),
    ):
        raise error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "fails"), [(30_000, "os error 27"), (60_000, "PytorchStreamWriter|inline_container")]
)
def test_a_full_disk_ends_in_a_sentence_and_leaves_the_older_checkpoint(
    limit: int, fails: str, world: Path, tmp_path: Path
) -> None:
    """A limit on file sizes simulates the full disk. In the first case, the file of the model is above the limit. In
    the second case, only the file of the optimizer's state is."""
    output, whole = tmp_path / "run", tmp_path / "whole"
    options = {"optim": "adamw_torch", "learning_rate": 0.01}
    make_trainer(world, output, **SAVING, **options, max_steps=2).train()
    process = start(partial(train_in, world, {**options, "limit": limit}), output)
    assert ended(process) == 2, log_of(output)
    (told,) = sentences(output)
    assert f"{output}/checkpoint-4 could not be written (" in told and re.search(fails, told), told
    assert told.endswith(f"; set resume_from_checkpoint to true to continue from {output}/checkpoint-2")
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-2"]

    for folder in (output, whole):
        run_alone(partial(train_in, world, options), folder)
    weights = load_file(output / "model.safetensors")
    for name, tensor in load_file(whole / "model.safetensors").items():
        assert torch.equal(weights[name], tensor), name
