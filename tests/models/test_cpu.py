"""Tests the settings for the CPU. Small models use one thread, unless the user has chosen a number of threads. Waiting
threads do not spin. A dtype that is slow on the CPU is reported."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from trl_rec.models import cpu
from trl_rec.models.cpu import SMALL, adapt_to_cpu, choose_threads
from trl_rec.threads import PASSIVE


class Cores:
    """Stores the number of threads in place of torch, so that the tests do not change how many threads their own
    process uses."""

    def __init__(self) -> None:
        self.threads = 8

    def get(self) -> int:
        return self.threads

    def set(self, number: int) -> None:
        self.threads = number


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cores]:
    """Simulates a machine with eight cores, on which the user has not chosen a number of threads."""
    fake = Cores()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", fake.get)
    monkeypatch.setattr(torch, "set_num_threads", fake.set)
    monkeypatch.setattr(cpu, "_physical_cores", lambda: 8)
    cpu._default_threads.cache_clear()
    yield fake
    cpu._default_threads.cache_clear()


def large() -> nn.Module:
    model = nn.Linear(2, 2)
    model.weight.ds_numel = SMALL  # as under ZeRO-3, where the parameter itself is empty
    return model


def test_the_number_of_threads_depends_on_the_size_of_the_model(cores: Cores) -> None:
    choose_threads(nn.Linear(2, 2))
    assert cores.threads == 1
    choose_threads(large())
    assert cores.threads == 8, "a large model must use all threads, even after a small model"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_variables_of_the_user_are_respected(cores: Cores, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "8")
    choose_threads(nn.Linear(2, 2))
    assert cores.threads == 8


def test_a_number_that_the_user_has_set_in_torch_is_respected(cores: Cores) -> None:
    cores.set(3)
    choose_threads(nn.Linear(2, 2))
    assert cores.threads == 3
    cpu._default_threads.cache_clear()
    cores.set(8)
    choose_threads(nn.Linear(2, 2))
    cores.set(5)
    choose_threads(nn.Linear(2, 2))
    assert cores.threads == 5, "a number that the user sets after `choose_threads` was called must be kept"


def test_a_model_on_a_device_changes_nothing(cores: Cores) -> None:
    """A device is anything but the CPU. Here, it is the meta device."""
    adapt_to_cpu(nn.Linear(2, 2, device="meta", dtype=torch.bfloat16))
    assert cores.threads == 8


@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_dtype_without_cpu_instructions_is_reported_once(
    kind: torch.dtype, supported: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "cpu_computes_in", lambda dtype: dtype == kind and supported)
    cpu._check_speed.cache_clear()
    with caplog.at_level(logging.WARNING, "trl_rec"):
        adapt_to_cpu(nn.Linear(2, 2))
        assert caplog.messages == []
        adapt_to_cpu(nn.Linear(2, 2), autocast=kind)
        adapt_to_cpu(nn.Linear(2, 2, dtype=kind))
    name = str(kind).removeprefix("torch.")
    remedies = [f"set {'bf16' if kind == torch.bfloat16 else 'fp16'} to false", "set dtype to float32"]
    assert len(caplog.messages) == (0 if supported else 2)
    for message, remedy in zip(caplog.messages, remedies, strict=False):
        assert f"no instructions for {name}, so" in message and message.endswith(remedy)
    cpu._check_speed.cache_clear()


LAUNCHER = """
import os, subprocess, sys
variables = {**os.environ, "OMP_NUM_THREADS": "2", "ACCELERATE_DYNAMO_MODE": "default"}
subprocess.run([sys.executable, "-c", *sys.argv[1:]], env=variables)
"""
STARTER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
PRINTER = "import json; from trl_rec.compat import user_environment; print(json.dumps(dict(user_environment())))"


@pytest.mark.parametrize("programs", [[LAUNCHER, PRINTER], [LAUNCHER, STARTER, PRINTER]], ids=["launched", "child"])
@pytest.mark.parametrize("given", [{}, {"OMP_NUM_THREADS": "6"}])
def test_variables_of_the_launcher_are_not_taken_for_choices_of_the_user(
    given: dict[str, str], programs: list[str]
) -> None:
    """`LAUNCHER` sets variables as `accelerate launch` does, and starts the next program. `STARTER` only starts the
    next program. `PRINTER` prints the variables that the user has set."""
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", *programs]
    output = subprocess.run(command, env={**clean, **given}, capture_output=True, text=True, check=True).stdout
    assert {"OMP_NUM_THREADS": json.loads(output).get("OMP_NUM_THREADS")} == {"OMP_NUM_THREADS": None, **given}


@pytest.mark.parametrize("module", ["trl_rec.cli", "trl_rec.scripts.verbs"])
def test_a_verb_sets_passive_waiting_before_torch_is_imported(module: str) -> None:
    code = f"import os, sys, {module}; print('torch' in sys.modules, *[os.environ[name] for name in {[*PASSIVE]}])"
    environment = {name: value for name, value in os.environ.items() if name not in PASSIVE}
    for given in ({}, {"KMP_BLOCKTIME": "7"}):
        command = [sys.executable, "-c", code]
        output = subprocess.run(command, env={**environment, **given}, capture_output=True, text=True, check=True)
        assert output.stdout.split() == ["False", "PASSIVE", given.get("KMP_BLOCKTIME", "0")]
