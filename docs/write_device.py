"""Writes the tables of figures measured on a GPU, in docs/device.md and recipes/README.md, from docs/device.json.

    python docs/write_device.py [--add FILE]

With `--add`, docs/device.json is first replaced by FILE, which `benchmarks/device.py` wrote. Each table is between
`<!-- device: NAME -->` and `<!-- end -->`. A cell whose figure is missing in docs/device.json reads "not measured".
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import yaml


DOCS = Path(__file__).parent
RECIPES = DOCS.parent / "recipes"
FIGURES = DOCS / "device.json"
PAGES = (DOCS / "device.md", RECIPES / "README.md")
BLOCK = re.compile(r"<!-- device: (?P<name>\w+) -->\n.*?<!-- end -->", re.DOTALL)
UNKNOWN = "not measured"
VERBS = ("bear", "alro", "blade", "softmax_dpo", "align3gr")
PAIRS = {
    "BearTrainer": "SFTTrainer",
    "AlroTrainer": "SFTTrainer",
    "SoftmaxDPOTrainer": "DPOTrainer",
    "BladeTrainer": "GRPOTrainer",
}


def main() -> None:
    """Writes the tables of both pages. With `--add`, first replaces docs/device.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", metavar="FILE", type=Path, help="file written by benchmarks/device.py")
    arguments = parser.parse_args()
    if arguments.add is not None:
        content = json.loads(arguments.add.read_text(encoding="utf-8"))
        if content["machine"]["device"] == "CPU":
            raise SystemExit(f"{arguments.add} was measured on a CPU; run benchmarks/device.py on a GPU")
        FIGURES.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    figures = kept()
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8"), figures), encoding="utf-8")


def kept() -> dict[str, Any]:
    """Returns the content of docs/device.json, or an empty dict if there is no such file."""
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}


def written(page: str, figures: dict[str, Any]) -> str:
    """Returns the text of a page with every table built again."""
    return BLOCK.sub(lambda match: block(match["name"], figures), page)


def block(name: str, figures: dict[str, Any]) -> str:
    """Returns the block of a table: a line that says how it was measured, and the table, between two HTML comments."""
    lines = {"recipes": recipes, "trainers": trainers, "decoder": decoder}[name](figures)
    return "\n".join([f"<!-- device: {name} -->", origin(figures), "", *table(lines), "<!-- end -->"])


def origin(figures: dict[str, Any]) -> str:
    """Returns a line with the command, the GPU, the date and the versions of the libraries."""
    command = "`python benchmarks/device.py`"
    if not figures:
        return f"{command}: not yet run on a GPU."
    machine = dict(figures["machine"])
    device, date = machine.pop("device"), machine.pop("date")
    return f"{command} on {device}, {date}, " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "."


def recipes(figures: dict[str, Any]) -> list[list[str]]:
    """Returns the heading, and one row per recipe that trains a Llama or Qwen model."""
    rows = [["recipe", "rows per step", "peak memory", "16 GB", "24 GB", "seconds per step"]]
    found = {recipe["name"]: recipe for recipe in figures.get("recipes", [])}
    for name, settings in consumer_recipes().items():
        batches = settings.get("gradient_accumulation_steps", 1)
        cells = [f"`{name}`", str(settings["per_device_train_batch_size"] * batches)]
        recipe = found.get(name)
        if recipe is None:
            rows.append([*cells, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN])
        elif recipe["fits"] is None:
            rows.append([*cells, "more than 24 GB", "no", "no", UNKNOWN])
        else:
            fits_16 = "yes" if recipe["fits"] == 16 else "no"
            seconds = recipe["batches_per_step"] * recipe["seconds"]
            rows.append([*cells, gigabytes(recipe["peak_bytes"]), fits_16, "yes", shown(seconds)])
    return rows


def consumer_recipes() -> dict[str, dict[str, Any]]:
    """Returns the settings of each recipe that trains a Llama or Qwen model, by the name of the recipe."""
    found = {}
    for verb in VERBS:
        for path in sorted((RECIPES / verb).glob("*.yaml")):
            if re.search("llama|qwen", path.stem):
                found[f"{verb}/{path.stem}"] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def trainers(figures: dict[str, Any]) -> list[list[str]]:
    """Returns the heading, and two rows per pair in `PAIRS`: our trainer, then TRL's."""
    rows = [["trainer", "seconds per step", "relative", "peak memory", "numbers read per step", "waits per step"]]
    found = {pair["ours"]: pair for pair in figures.get("trainers", [])}
    for ours, theirs in PAIRS.items():
        pair = found.get(ours, {})
        both = pair.get("figures"), pair.get("their_figures")
        for name, own in zip((f"`{ours}`", f"TRL's `{theirs}`"), both, strict=True):
            if own is None:
                rows.append([name, *[UNKNOWN] * 5])
                continue
            relative = UNKNOWN if both[0] is None else f"{own['seconds'] / both[0]['seconds']:.2f}"
            counts = [str(own[count]) for count in ("reads", "waits")]
            rows.append([name, shown(own["seconds"]), relative, gigabytes(own["peak_bytes"]), *counts])
    return rows


def decoder(figures: dict[str, Any]) -> list[list[str]]:
    """Returns the heading, and one row with the sizes and times of a search with 50 beams."""
    found = figures.get("decoder")
    heading = ["beams", "prompts", "items", "steps", "seconds in all", "milliseconds per step outside the model"]
    if found is None:
        return [heading, ["50", *[UNKNOWN] * 5]]
    sizes = [str(found[name]) for name in ("num_beams", "num_prompts", "num_items", "steps")]
    return [heading, [*sizes, shown(found["seconds"]), f"{1_000 * found['overhead_seconds']:.2f}"]]


def table(rows: list[list[str]]) -> list[str]:
    """Returns the lines of a Markdown table whose first row is the heading."""
    lines = ["|" + "".join(f" {cell} |" for cell in row) for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def gigabytes(num_bytes: int | None) -> str:
    """Returns a size such as `7.3 GB`."""
    return UNKNOWN if num_bytes is None else f"{num_bytes / 10**9:.1f} GB"


def shown(seconds: float) -> str:
    """Returns seconds with three significant digits."""
    return f"{seconds:.3g}"


if __name__ == "__main__":
    main()
