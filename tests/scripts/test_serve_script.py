"""Tests that `trl-rec serve` serves a run folder until it receives a signal, and then exits with status 0. Also tests
the errors for a port in use, for missing options and for a missing package."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.decoding.recommenders import make_recommender
from tests.serving.servers import Client
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.scripts import serve as script
from trl_rec.serving import ServingConfig, serve


pytestmark = pytest.mark.filterwarnings("ignore:.* have the same text as an earlier item")


def make_run(folder: Path) -> Path:
    recommender = make_recommender("item_token")
    recommender.model.save_pretrained(folder)
    recommender.tokenizer.save_pretrained(folder)
    save_recommender(folder, recommender.catalog, {**recommender.settings, "prompt": {}})
    return folder


@pytest.mark.slow
def test_the_command_serves_a_run_folder_until_a_signal(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    command = [
        sys.executable,
        "-c",
        "from trl_rec.cli import main; main()",
        "serve",
        "--model",
        str(run),
        "--port",
        "0",
    ]
    environment = {**os.environ, "TRL_REC_TOKEN": "s3cret"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert line.startswith(f"serving {run} at http://127.0.0.1:"), process.stderr.read()
        client = Client(int(line.split(":")[2].split()[0]), "s3cret")
        answer = client.recommend(["id 1", "id 2"], 3)
        expected = make_recommender("item_token").recommend(["id 1", "id 2"], 3)
        assert [item["item_id"] for item in answer.body["items"]] == [one.item_id for one in expected]
        assert answer.body["run"].startswith("run-")
        assert client.get("/").body.startswith("<!doctype html>")
        assert Client(client.port).get("/v1/model").status == 401
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert output == "stopped\n" and process.returncode == 0


def test_a_port_in_use_is_refused_before_the_model_is_loaded() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ValueError, match="choose another --port or --host"):
            serve(ServingConfig("no such run", port=other.getsockname()[1]))


def test_a_missing_option_or_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --model RUN_FOLDER"):
        script.main([])
    with pytest.raises(ValueError, match="needs a catalogue"):
        script.main(["--lists", "recs.parquet"])
    monkeypatch.setattr(script, "find_spec", lambda name: None if name == "fastapi" else object())
    with pytest.raises(ValueError, match=r"serving needs fastapi; run pip install 'trl-rec\[serve\]'"):
        script.main(["--model", str(tmp_path)])
