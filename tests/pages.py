"""Finds the code blocks of Markdown pages, and makes the small dataset and the run folder that they use.

Tests run the Python blocks and the `trl-rec` commands of bash blocks. In `docs/`, the line `<!-- not run: REASON -->`
before a block prevents this.
"""

import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

from trl_rec import BearConfig, RecModelConfig, build_bear_trainer, prepare
from trl_rec.trainer import conclude


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]*) -->\n)?"
    r"^ *```(?P<language>\w+)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
CATEGORIES = ("Shoes", "Hats")
BRANDS = ("Alba", "Bora", "Cima")


class Block(NamedTuple):
    """A code block of a page.

    Args:
        name: The page and the number of the block, as shown in messages.
        text: The code.
        reason: Why the block is not run, or None.
    """

    name: str
    text: str
    reason: str | None


def pages() -> list[Path]:
    """Returns the pages in `docs/` in the order of the start page, followed by the pages that it does not list."""
    order = re.findall(r"^- \[[^\]]*\]\(([\w/.]+)\)", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    listed = [DOCS / name for name in order if not name.startswith("..")]
    others = [path for path in sorted(DOCS.rglob("*.md")) if path not in listed and "site" not in path.parts]
    return listed + others


def blocks(page: Path, language: str) -> Iterator[Block]:
    """Yields the code blocks of a page that are written in `language`, such as `python`."""
    found = [match for match in BLOCK.finditer(page.read_text(encoding="utf-8")) if match["language"] == language]
    for number, match in enumerate(found):
        name = f"{page.relative_to(ROOT)}, {language} {number}"
        yield Block(name, dedent(match["text"]), match["reason"])


def commands(block: Block) -> Iterator[list[str]]:
    """Yields the words of each `trl-rec` command of a block, without the word `trl-rec`."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("trl-rec "):
            yield shlex.split(line, comments=True)[1:]


def make_log(folder: Path) -> None:
    """Writes the files that the code blocks of the pages read.

    - `my-log`: a log with 24 users, `u0` to `u23`, and 40 items, `i0` to `i39`. The items have columns to filter by.
    - `today.csv`: a log without a catalogue.
    - `sasrec.csv`: ranked lists, as if made by another recommender.
    """
    chosen = [[f"i{(5 * user + step) % 40}" for step in range(10)] for user in range(24)]
    interactions = [
        f"u{user},{item},{step},{1 + (user + step) % 5}"
        for user, items in enumerate(chosen)
        for step, item in enumerate(items)
    ]
    items = [
        f"i{item},Item number {item},{CATEGORIES[item % 2]},{BRANDS[item % 3]},{20 * (item % 4)}" for item in range(40)
    ]
    lists = [
        f"u{user},{rank},{item}"
        for user, items in enumerate(chosen)
        for rank, item in enumerate([f"i{item}" for item in range(40) if f"i{item}" not in items[:-1]][:10], 1)
    ]
    write_csv(folder / "my-log/interactions.csv", "user_id,item_id,timestamp,rating", interactions)
    write_csv(folder / "my-log/items.csv", "item_id,title,category,brand,price", items)
    write_csv(folder / "today.csv", "user_id,item_id,timestamp", ["new,i3,1", "new,i5,2"])
    write_csv(folder / "sasrec.csv", "user_id,rank,item_id", lists)


def write_csv(path: Path, heading: str, lines: list[str]) -> None:
    """Writes a CSV file, and makes its folder."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([heading, *lines]) + "\n", encoding="utf-8")


def make_world(folder: Path) -> None:
    """Makes the folders that the quick start makes: `data/my-log`, and `runs/bear-my-log` with only two training
    steps.

    Args:
        folder: Where to make them. It must be the current directory.
    """
    make_log(folder)
    dataset = prepare("my-log", "data/my-log").with_surface("item_token")
    config = BearConfig("runs/bear-my-log", targets="all", max_steps=2, use_cpu=True, bf16=False, report_to="none")
    trainer = build_bear_trainer(dataset, config, RecModelConfig(hidden_size=16))
    trainer.train()
    conclude(trainer, dataset, {})


def train(verb: str, argv: list[str], output: Path) -> None:
    """Runs the script of a training verb in this process for four steps. As under `accelerate launch`, the script is
    the module `__main__` and reads `sys.argv`. `output` becomes the current directory."""
    os.chdir(output)
    sys.argv = [verb, *argv, "--max_steps", "4"]
    runpy.run_module(f"trl_rec.scripts.{verb}", run_name="__main__", alter_sys=True)
