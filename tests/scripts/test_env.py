"""Tests `trl-rec env`, which prints a list to paste into a bug report."""

import platform
import re

import pytest
import torch
import trl

from trl_rec.cli import main
from trl_rec.version import __version__


def test_the_list_names_versions_devices_threads_and_extras(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    main(["env"])
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert all(re.fullmatch(r"- [^:]+: .+", line) for line in lines)
    assert f"- trl-rec: {__version__}" in lines and f"- trl: {trl.__version__}" in lines
    assert f"- torch: {torch.__version__}" in lines and f"- Python: {platform.python_version()}" in lines
    assert any(line.startswith(f"- threads: {torch.get_num_threads()}, OMP_NUM_THREADS=1") for line in lines)
    assert any(line.startswith("- devices: ") for line in lines)
    assert any(line.startswith("- extra serve: fastapi ") for line in lines)
    assert any(line.startswith("- extra quantization: bitsandbytes ") for line in lines)
    assert "extra test" not in printed and "hf_secret" not in printed
