"""Tests how `docs/site_source.py` changes the text of a page, and that the documentation site builds without warnings.

Without warnings, every link and reference has an existing target.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import load_program


ROOT = Path(__file__).parents[1]
site_source = load_program("docs/site_source.py")


def test_links_to_files_become_links_to_pages() -> None:
    text = "See [data.md](../data.md#rows), [recipes/README.md](../../recipes/README.md#bear) and [this](../gpus.md)."
    assert site_source.for_site("methods/bear", text) == (
        "See [Your own data](../data.md#rows), [Recipes](../site/recipes.md#bear) and [this](../gpus.md)."
    )


def test_the_navigation_is_made_from_the_start_page() -> None:
    text = "# trl-rec\n\nRun the [quick start](quickstart.md).\n\n## In use\n\n- [Serving](serving.md): over HTTP\n"
    written = site_source.for_site("index", text)
    assert written.startswith(text)
    assert written.removeprefix(text).split() == [
        "```{toctree}",
        ":hidden:",
        ":caption:",
        "In",
        "use",
        "serving",
        "```",
    ]


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="install the extra docs")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "--keep-going", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    # The API reference contains names with their arguments, and names in docstrings are links.
    page = (tmp_path / "site/api/decoding.html").read_text(encoding="utf-8")
    assert 'id="trl_rec.decoding.rank_items"' in page and "num_beams" in page
    assert 'href="#trl_rec.decoding.ItemWeights"' in page
    assert "[`" not in re.sub("<[^>]+>", "", page)

    # Formulas are written in MathML, and no scripts or styles are loaded from other servers.
    for page in (tmp_path / "methods").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "<math" in text and "$$" not in text
        assert 'src="http' not in text and not re.search('<link[^>]+stylesheet[^>]+href="http', text)
