"""The wheel and the sdist are complete. With the wheel and without a checkout, the commands of the README work and
print recommendations."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.pages import ROOT, blocks, make_log
from tests.serving.servers import Client


pytestmark = pytest.mark.slow

README = ROOT / "README.md"
# Files of a checkout that are not part of a release.
NOT_RELEASED = (".ci", ".gitignore")


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with an sdist, and with a wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("release")
    for name in released_files():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    run([sys.executable, "-m", "build", "--outdir", "dist", "source"], folder)
    return folder / "dist"


def released_files() -> list[str]:
    """Returns the files of a release: all files that git tracks or would track, except for `NOT_RELEASED`."""
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines()
    return sorted(name for name in listed if not name.startswith(NOT_RELEASED) and (ROOT / name).is_file())


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> str:
    """Runs a command in a folder, and returns what it printed. If the command fails, the error contains the end of its
    output."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_the_sdist_contains_every_file_of_the_project(releases: Path, tmp_path: Path) -> None:
    (sdist,) = releases.glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    missing = [name for name in released_files() if not (unpacked / name).is_file()]
    assert not missing


def test_the_wheel_contains_the_package_and_the_recipes(releases: Path, tmp_path: Path) -> None:
    (wheel,) = releases.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path, "zip")
    packed = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    expected = {name for name in released_files() if name.startswith("trl_rec/")}
    expected |= {f"trl_rec/{name}" for name in released_files() if name.startswith("recipes/") and ".yaml" in name}
    assert {name for name in packed if ".dist-info/" not in name} == expected


@pytest.mark.parametrize("installs", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_readme_leads_to_recommendations_and_a_page(installs: bool, releases: Path, tmp_path: Path) -> None:
    """The `trl-rec` commands and the Python snippets of the README run in a new environment as they are printed. There
    are two exceptions: the server gets a free port, and the command with a model from the hub is left out.

    With `installs`, pip also installs the dependencies. Otherwise, the environment uses the dependencies that are
    installed for the tests.
    """
    (wheel,) = releases.glob("*.whl")
    environment = tmp_path / "environment"
    make_environment(environment, wheel, installs=installs)
    folder = tmp_path / "shop"
    folder.mkdir()
    make_log(folder)
    variables = {
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    # 1. Prepare, train, and print a list.
    lines = [line for block in blocks(README, "bash") for line in block.text.splitlines()]
    prepare, bear, recommend, serve = (
        line for line in lines if line.startswith("trl-rec ") and "office-titles" not in line
    )
    assert "24 users" in shell(prepare, folder, variables)
    trained = shell(bear, folder, variables)
    assert all(name in trained for name in ("transition", "BEAR", "runs/bear-my-log"))
    listed = shell(recommend, folder, variables)
    assert "history, newest first" in listed and "Item number" in listed

    # 2. Run each Python snippet as a separate program.
    for block in blocks(README, "python"):
        (folder / "snippet.py").write_text(block.text, encoding="utf-8")
        assert "item_id=" in shell("python snippet.py", folder, variables)

    # 3. Start the server, open its page, and request recommendations over HTTP.
    process = subprocess.Popen(
        f"exec {serve} --port 0",
        shell=True,
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(process.stdout.readline().split(":")[2].split()[0])
        client = Client(port)
        assert client.get("/").body.startswith("<!doctype html>")
        answer = client.recommend(["i3", "i8"], 5)
        assert answer.status == 200 and len(answer.body["items"]) == 5
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    assert process.returncode == 0


def make_environment(folder: Path, wheel: Path, installs: bool) -> None:
    """Makes a virtual environment and installs the wheel. The dependencies are either installed too, or found through
    a path to the packages that are installed for the tests."""
    if installs:
        run([sys.executable, "-m", "venv", folder], folder.parent)
        pip = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, "-c", ROOT / "constraints.txt", f"{wheel}[serve]"], folder.parent)
        return
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "--no-deps"]
    run([*pip, "--disable-pip-version-check", wheel], folder.parent)
    # The file `dependencies.pth` makes the folder with the packages of the tests importable. This folder contains
    # another `.pth` file, through which the tests find the checkout. Python ignores `.pth` files in a folder that was
    # itself added by a `.pth` file, so the new environment does not find the checkout.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


def shell(line: str, folder: Path, variables: dict[str, str]) -> str:
    """Runs a line of the README with the shell, and returns what it printed."""
    return run(["sh", "-c", line], folder, **variables)
