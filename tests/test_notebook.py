"""All cells of `examples/quickstart.ipynb` run, except the cell that installs the package. The server that the
notebook starts answers with a list."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.pages import ROOT


NOTEBOOK = ROOT / "examples/quickstart.ipynb"


@pytest.mark.long
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells[1:]), "a cell other than the installation did not run"
    text = "\n".join(str(output) for cell in cells for output in cell.outputs)
    for expected in ("transition", "BEAR", "1. ", "'rank': 1", "serving runs/bear-my-log at", "'score'"):
        assert expected in text
    # The stored notebook has outputs in exactly the cells that had outputs in this run. If not, run `make notebook`.
    assert [len(outputs) > 0 for outputs in stored] == [len(cell.outputs) > 0 for cell in cells]
