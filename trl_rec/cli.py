"""`trl-rec VERB`: forwards a verb to its script. Help answers at once, since nothing heavy is loaded before a verb is known."""

from __future__ import annotations

import sys
from importlib import import_module

from trl_rec import __version__


VERBS = {
    "prepare": "make a dataset folder from an interaction log and a catalogue",
    "evaluate": "rank a split with floors and, if given, a model; print a table, write metrics.json",
}


def main(argv: list[str] | None = None) -> None:
    """Runs the verb; what the user got wrong becomes one sentence and exit status 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] == "--version":
        print(__version__)
        return
    if argv[0] not in VERBS:
        sys.exit(f"trl-rec: there is no verb {argv[0]!r}; choose one of {', '.join(VERBS)}")
    try:
        import_module(f"trl_rec.scripts.{argv[0]}").main(argv[1:])
    except ValueError as error:
        print(f"trl-rec {argv[0]}: {error}", file=sys.stderr)
        sys.exit(2)


def usage() -> str:
    """What `trl-rec --help` prints."""
    verbs = "\n".join(f"  {verb:<10} {text}" for verb, text in VERBS.items())
    return (
        f"usage: trl-rec VERB [--config RECIPE] [--KEY VALUE ...]\n\n{verbs}\n\n"
        "RECIPE is a YAML file, or a shipped one's name such as prepare/ml-100k; any key can be given on the command line.\n"
        "trl-rec VERB --help lists a verb's keys."
    )


if __name__ == "__main__":
    main()
