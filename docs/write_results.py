"""Writes the tables of docs/results.md from docs/studies/*.json.

    python docs/write_results.py [--add STUDY_FOLDER NAME]

Each table is between `<!-- study: NAME -->` and `<!-- end -->`. It is built from docs/studies/NAME.json, which
contains either

- an excerpt of the `study.json` of a finished study (figures, verdicts, command and commit), written by `--add`; or
- a table copied from the output of a command, with `"status": "as printed"`.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any


DOCS = Path(__file__).parent
PAGE = DOCS / "results.md"
STUDIES = DOCS / "studies"
BLOCK = re.compile(r"<!-- study: (?P<name>[\w.-]+) -->\n.*?<!-- end -->", re.DOTALL)
KEPT = ("status", "command", "commit", "version", "finished", "num_users", "seeds", "primary", "metrics", "against")
KEPT += ("smallest_difference", "comparisons", "recommendation", "split")
OF_AN_ARM = ("status", "reason", "kind", "chosen", "headroom", "figures", "validation")


def main() -> None:
    """Writes docs/results.md. With `--add`, first stores the excerpt of a study in docs/studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--add",
        nargs=2,
        metavar=("STUDY_FOLDER", "NAME"),
        help="first store an excerpt of STUDY_FOLDER/study.json as docs/studies/NAME.json",
    )
    arguments = parser.parse_args()
    if arguments.add is not None:
        folder, name = arguments.add
        content = kept(json.loads((Path(folder) / "study.json").read_text(encoding="utf-8")))
        (STUDIES / f"{name}.json").write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def written(page: str) -> str:
    """Returns the text of the page with every table built again from its file."""
    return BLOCK.sub(lambda match: block(match["name"]), page)


def block(name: str) -> str:
    """Returns the block of a study: its command and its table, between two HTML comments."""
    path = STUDIES / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"docs/results.md names the study '{name}', but there is no {path}; write it with --add")
    study = json.loads(path.read_text(encoding="utf-8"))
    lines = printed(study) if study["status"] == "as printed" else measured(study)
    return "\n".join([f"<!-- study: {name} -->", *lines, "<!-- end -->"])


def kept(study: dict[str, Any]) -> dict[str, Any]:
    """Returns the excerpt of a `study.json` that is stored in docs/studies.

    It contains the keys in `KEPT` and, for each arm, the keys in `OF_AN_ARM`.
    """
    arms = {
        name: {key: arm[key] for key in OF_AN_ARM if arm.get(key) is not None} for name, arm in study["arms"].items()
    }
    return {**{key: study[key] for key in KEPT if key in study}, "arms": arms}


def printed(study: dict[str, Any]) -> list[str]:
    """Returns the lines for a study whose table was copied from a command's output."""
    return [f"`{study['command']}`:", "", *table([study["columns"], *study["rows"]])]


def measured(study: dict[str, Any]) -> list[str]:
    """Returns the lines for a study of which an excerpt is stored.

    These are a paragraph with the command, the number of users, the split and the smallest difference that the study
    can detect; a table with one row per arm that has figures; the comparisons that the table does not show; and the
    arms that are left out.
    """
    metrics = [*study["metrics"], study["primary"]]
    against = {one["name"]: one for one in study["comparisons"] if one["against"] == study["against"]}
    rows = [
        ["", "seeds", *metrics, "by seed", "validation", f"difference to {study['against']}", "adjusted p", "verdict"]
    ]
    for name, arm in study["arms"].items():
        if "figures" not in arm:
            continue
        is_training = arm["kind"] in ("training", "policy")
        by_seed = arm["figures"].get(study["primary"], {}).get("by_seed", []) if is_training else []
        one = against.get(name)
        compared = ["", "", "reference" if name == study["against"] else ""]
        if one is not None:
            compared = [signed(one["difference"]), shown(one["adjusted_p"]), one["verdict"]]
        rows.append(
            [
                name,
                str(len(by_seed) or ""),
                *(with_interval(arm["figures"].get(metric)) for metric in metrics),
                " ".join(map(shown, by_seed)),
                shown(arm["validation"]) if "validation" in arm else "",
                *compared,
            ]
        )
    others = [
        f"- {one['name']} against {one['against']}: {signed(one['difference'])}, adjusted p "
        f"{shown(one['adjusted_p'])}: {one['verdict']}."
        for one in study["comparisons"]
        if one["against"] != study["against"]
    ]
    left_out = [f"- {name} is left out: {arm['reason']}." for name, arm in study["arms"].items() if "reason" in arm]
    facts = f"{study['num_users']:,} {study.get('split', 'test')} users."
    if study.get("smallest_difference") is not None:
        facts = (
            f"{facts[:-1]}; the study can detect differences in {study['primary']} of about "
            f"{shown(study['smallest_difference'])} or more."
        )
    origin = f"`{study['command']}`" + (f" (commit {study['commit']})" if study.get("commit") else "")
    lines = [*wrapped(f"{origin}. {facts}"), "", *table(rows)]
    return [*lines, *(["", *others, *left_out] if others or left_out else [])]


def wrapped(text: str) -> list[str]:
    """Returns a paragraph in lines of at most 119 characters."""
    return textwrap.wrap(text, 119, break_long_words=False, break_on_hyphens=False)


def table(rows: list[list[str]]) -> list[str]:
    """Returns the lines of a Markdown table whose first row is the heading."""
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def with_interval(figure: dict[str, Any] | None) -> str:
    """Returns a mean and half the width of its confidence interval, such as `.1056 ±.0155`."""
    if figure is None:
        return ""
    low, high = figure["interval"]
    return f"{shown(figure['mean'])} \N{PLUS-MINUS SIGN}{shown((high - low) / 2)}"


def shown(value: float) -> str:
    """Returns a value with four decimals, without the zero before the point."""
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.4f}"


def signed(value: float) -> str:
    """Returns a difference with its sign and four decimals, without the zero before the point."""
    return f"{value:+.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:+.4f}"


if __name__ == "__main__":
    main()
