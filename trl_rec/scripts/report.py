"""`trl-rec report`: writes one HTML page on runs, evaluations or a study, to be read in any browser."""

from __future__ import annotations

import argparse
from typing import NoReturn

from trl_rec.scripts.verbs import VERBS


def main(argv: list[str]) -> None:
    """Writes the page and prints its path."""
    # 1. Read the arguments.
    parser = _Parser(prog="trl-rec report", description=VERBS["report"], allow_abbrev=False)
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="RUN_OR_STUDY",
        help="run folders and output folders of 'trl-rec evaluate', or one study folder",
    )
    parser.add_argument("--output", default="report.html", help="HTML file to write (default: report.html)")
    parser.add_argument(
        "--names",
        nargs="+",
        help="a name for each run; runs with the same name are seeds of one recommender (default: runs whose recipes "
        "differ only in the seed are grouped)",
    )
    parser.add_argument(
        "--dataset",
        help="dataset folder with the histories and with the items that users chose next (default: the folder that "
        "the runs were measured on, if it still contains the same dataset)",
    )
    parser.add_argument(
        "--show_users",
        nargs="?",
        const=True,
        default=False,
        type=_as_bool,
        metavar="true",
        help="show user ids instead of row numbers above the lists",
    )
    arguments = parser.parse_args(argv)

    # 2. Write the page. The import takes seconds, so it comes after `parse_args`, which exits after printing help.
    from trl_rec.evaluation.report import write_report

    write_report(
        arguments.sources,
        arguments.output,
        names=arguments.names,
        dataset=arguments.dataset,
        show_users=arguments.show_users,
    )
    print(f"the report is in {arguments.output}; open it in a browser")


def _as_bool(text: str) -> bool:
    """Reads "true", "false" and similar words, as the parser of the other verbs does."""
    from trl_rec.compat import string_to_bool

    return bool(string_to_bool(text))


class _Parser(argparse.ArgumentParser):
    """Argument parser that raises `ValueError` instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raises `ValueError` with the message."""
        raise ValueError(f"{message}; trl-rec report --help lists the options")
