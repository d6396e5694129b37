"""Tests what a verb does when it receives a signal. It prints one line, and exits with the status 128 + the signal
number. Afterwards, the verb can be run again or resumed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.robustness import folder_runs
from tests.robustness.attacks import contents
from trl_rec.data import prepare
from trl_rec.data.preparation import preparing
from trl_rec.scripts import interrupts
from trl_rec.scripts.running import run
from trl_rec.semantic_ids import kmeans_ids


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Sets the default handlers, because SIGINT is ignored if a shell started pytest in the background."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stop(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)  # in case the handler has not raised yet


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("verb", "remedy"),
    [
        ("prepare", "nothing was written; run the same command again"),
        ("tokenize", "run the same command again; finished vectors are reused"),
        ("evaluate", "the same command continues where it stopped"),
        ("recommend", "the same command continues where it stopped"),
        ("blade", "the same command with --resume_from_checkpoint true continues from the newest checkpoint"),
        ("align3gr", "the same command continues where it stopped"),
    ],
)
def test_an_interrupt_ends_in_one_line(number: int, verb: str, remedy: str, capsys) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        run(verb, lambda argv: stop(number), [])
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == f"\ntrl-rec {verb}: interrupted; {remedy}\n"
    assert signal.getsignal(number) == before


def test_a_second_signal_does_not_interrupt_the_cleaning_up(capsys) -> None:
    cleaned = []

    def main(argv: list[str]) -> None:
        try:
            stop(signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(SystemExit) as ended:
        run("evaluate", main, [])
    assert ended.value.code == 130 and cleaned and capsys.readouterr().err.count("interrupted") == 1


def test_an_error_that_follows_a_signal_is_reported_as_the_interrupt(capsys) -> None:
    def main(argv: list[str]) -> None:
        try:
            stop(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("Connection closed by peer") from None

    with pytest.raises(SystemExit) as ended:
        run("bear", main, [])
    assert ended.value.code == 143 and "Connection" not in capsys.readouterr().err


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        run("evaluate", lambda argv: os.kill(os.getpid(), signal.SIGHUP), [])
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_rank_0_prints_the_line_and_writes_the_file_for_the_launcher(
    rank: str, capsys, tmp_path: Path, monkeypatch
) -> None:
    """If the file exists, the launcher prints no line of its own."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv(interrupts.SAID, str(tmp_path / "said"))

    def main(argv: list[str]) -> None:
        try:
            stop(signal.SIGTERM)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt("interrupted after step 3") from interrupt

    with pytest.raises(SystemExit) as ended:
        run("bear", main, [])
    assert ended.value.code == 143 and (tmp_path / "said").exists() == (rank == "0")
    assert capsys.readouterr().err == ("\ntrl-rec bear: interrupted after step 3\n" if rank == "0" else "")


@pytest.mark.parametrize(
    ("work", "module", "place"),
    [(folder_runs.prepare_again, preparing, "save"), (folder_runs.tokenize_kmeans, kmeans_ids, "write_ids")],
)
def test_an_interrupted_verb_writes_nothing(work, module, place: str, tmp_path: Path, monkeypatch) -> None:
    folder_runs.make_start(tmp_path / "data")
    before = contents(tmp_path)
    monkeypatch.setattr(module, place, lambda *given, **options: stop(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run("tokenize", lambda argv: work(tmp_path / "data"), [])
    assert ended.value.code == 143 and contents(tmp_path) == before


STEPS = 120
TRAIN = (
    f"bear --use_cpu true --bf16 false --max_steps {STEPS} --save_steps 10 --max_test_users 5 --eval_strategy no "
    "--report_to none --disable_tqdm true --hidden_size 16 --num_layers 1 --per_device_train_batch_size 2 "
    "--activation_checkpointing false --logging_steps 500 --output_dir run"
).split()
PROGRAM = [sys.executable, "-m", "trl_rec.cli", *TRAIN]


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)], ids=["one process", "two processes"]
)
def test_a_training_run_that_is_stopped_resumes_to_equal_weights(number: int, processes: int, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare("toy", data, toy_users=60, toy_items=50)
    words = ["--dataset", str(data)]
    if processes > 1:
        options = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_machines": 1}
        # MULTI_GPU selects torch's launcher, and use_cpu keeps the processes on the CPU.
        options |= {"mixed_precision": "no", "use_cpu": True}
        (tmp_path / "two.yaml").write_text(yaml.safe_dump(options))
        words += ["--num_processes", str(processes), "--accelerate_config", str(tmp_path / "two.yaml")]

    # 1. Stop a run after its first checkpoint.
    (tmp_path / "stopped").mkdir()
    with (tmp_path / "log").open("w+") as log:
        launcher = subprocess.Popen(
            [*PROGRAM, *words], cwd=tmp_path / "stopped", stderr=log, stdout=log, start_new_session=True
        )
        wait_for_checkpoint(tmp_path / "stopped" / "run", launcher)
        started = psutil.Process(launcher.pid).children(recursive=True)
        launcher.send_signal(number)
        assert launcher.wait(timeout=60) == 128 + number
        log.seek(0)
        printed = log.read()

    # 2. Check that the run printed one line, and that all of its processes have ended.
    gone, alive = psutil.wait_procs(started, timeout=5)
    assert len(gone) >= processes and not alive, printed[-3000:]
    assert "Traceback" not in printed, printed[-3000:]
    lines = [line for line in printed.splitlines() if line.startswith("trl-rec bear: ")]
    assert len(lines) == 1 and "interrupted after step" in lines[0], lines
    assert "set resume_from_checkpoint to true to continue from" in lines[0]
    assert not list((tmp_path / "stopped").glob(".*"))

    # 3. Resume the run. It must end with the same weights as a run that was never stopped.
    assert not (tmp_path / "stopped" / "run" / "model.safetensors").exists()
    shutil.copytree(tmp_path / "stopped", tmp_path / "whole", ignore=lambda *_: ["run"])
    for folder, more in (("stopped", ["--resume_from_checkpoint", "true"]), ("whole", [])):
        subprocess.run([*PROGRAM, *words, *more], cwd=tmp_path / folder, capture_output=True, check=True)
    assert weights_of(tmp_path / "stopped") == weights_of(tmp_path / "whole")


def wait_for_checkpoint(run_folder: Path, launcher: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not list(run_folder.glob("checkpoint-*/complete")):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def weights_of(folder: Path) -> str:
    return hashlib.sha256((folder / "run" / "model.safetensors").read_bytes()).hexdigest()


def test_launched_processes_print_the_same_sentence_once(capsys, tmp_path: Path, monkeypatch) -> None:
    def refuse(argv: list[str]) -> None:
        raise ValueError(argv[0])

    monkeypatch.setenv(interrupts.SAID, str(tmp_path / "said"))
    for sentence in ("no such file", "no such file", "another"):
        with pytest.raises(SystemExit) as ended:
            run("bear", refuse, [sentence])
        assert ended.value.code == 2
    assert capsys.readouterr().err == "trl-rec bear: no such file\ntrl-rec bear: another\n"


@pytest.mark.slow
def test_two_processes_that_fail_end_in_one_sentence(tmp_path: Path) -> None:
    words = ["--num_processes", "2", "--accelerate_config", "ddp", "--dataset", "nowhere"]
    ended = subprocess.run([*PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True)
    printed = ended.stderr
    assert ended.returncode == 2 and printed.count("trl-rec bear: ") == 1, printed
    assert "nowhere" in printed and "exitcode" not in printed and "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_process_that_is_killed_ends_in_a_sentence(processes: int, tmp_path: Path) -> None:
    prepare("toy", tmp_path / "data", toy_users=60, toy_items=50)
    words = ["--num_processes", str(processes), "--dataset", "data", "--save_steps", "10"]
    words += ["--accelerate_config", "cpu" if processes == 1 else "ddp"]
    with (tmp_path / "log").open("w+") as log:
        launcher = subprocess.Popen([*PROGRAM, *words], cwd=tmp_path, stderr=log, stdout=log)
        wait_for_checkpoint(tmp_path / "run", launcher)
        psutil.Process(launcher.pid).children()[-1].kill()
        assert launcher.wait(timeout=60) == 137
        log.seek(0)
        printed = log.read()
    assert "trl-rec bear: a process was killed by SIGKILL; the same command with --resume_from_checkpoint" in printed
    assert "exitcode" not in printed


def test_a_signal_that_arrives_in_a_finalizer_still_ends_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """The handler raises an exception. Python discards exceptions that are raised in a finalizer."""

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    def main(argv: list[str]) -> None:
        Finalized()
        time.sleep(2)  # this would run to its end if the signal were lost

    hook = sys.unraisablehook
    with pytest.raises(SystemExit) as ended:
        run("evaluate", main, [])
    assert ended.value.code == 130
    assert "the same command continues where it stopped" in capsys.readouterr().err
    assert sys.unraisablehook is hook
