"""Opens a report page in Chromium. The page shows hostile texts, such as titles that contain scripts, but runs no
scripts and loads nothing. It is protected twice: its texts are escaped, and it has a Content-Security-Policy. With
neither protection, the page would run scripts and load files."""

from __future__ import annotations

import html
import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.evaluation.report.hostile import hostile_run
from trl_rec.evaluation import write_report


pytestmark = pytest.mark.long

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Server(ThreadingHTTPServer):
    """Serves one page, and records the requested paths.

    The hostile texts of the page use the address of this server, because a browser may block requests to another local
    server even if the page is not protected.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.page = ""
        self.asked: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers every request with the page."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.server.page.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(server: Server, tmp_path: Path) -> str:
    """The HTML of a page about a run with hostile texts."""
    write_report([hostile_run(tmp_path, server.address)], tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def opened(server: Server, page: str, profile: Path) -> tuple[str, set[str]]:
    """Opens a page in Chromium without a window.

    Returns:
        The document after its scripts had time to run, and the requested paths other than those of the page and its
        icon.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    assert browser is not None, "this test needs Chromium; on Debian: apt-get install chromium"
    server.page = page
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    options = ["--virtual-time-budget=3000", "--dump-dom", f"{server.address}/report.html"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=120)
    return run.stdout, set(server.asked) - {"/report.html", "/favicon.ico"}


def test_a_hostile_page_runs_nothing_and_loads_nothing(server: Server, page: str, tmp_path: Path) -> None:
    """If a script opened a dialog, the browser would wait until the timeout, and the test would fail."""
    document, asked = opened(server, page, tmp_path / "profile")
    assert "<title>owned</title>" not in document and "Ten lists" in document
    assert asked == set()


def test_the_content_security_policy_alone_stops_texts_that_are_not_escaped(
    server: Server, page: str, tmp_path: Path
) -> None:
    document, asked = opened(server, html.unescape(page), tmp_path / "profile")
    assert "<title>owned</title>" not in document and asked == set()


def test_without_escapes_and_policy_the_texts_would_run_and_load(server: Server, page: str, tmp_path: Path) -> None:
    """Shows that the tests above can fail."""
    unprotected = html.unescape(page).replace("Content-Security-Policy", "unknown").replace("alert(1)", "0")
    document, asked = opened(server, unprotected, tmp_path / "profile")
    assert "<title>owned</title>" in document and asked
