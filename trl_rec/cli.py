"""`trl-rec VERB`: forwards each verb to its script.

Nothing heavy is imported before the verb is known, so `trl-rec --help` answers at once.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from importlib import import_module

from trl_rec.scripts.verbs import SCRIPTS, TRAINING, VERBS
from trl_rec.version import __version__


def main(argv: list[str] | None = None) -> None:
    """Runs a verb.

    Args:
        argv: The words of the command line, the verb first. Defaults to the command line of this process.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] == "--version":
        print(__version__)
        return

    verb, *words = argv
    if verb not in VERBS:
        sys.exit(f"trl-rec: there is no verb {verb!r}; choose one of {', '.join(VERBS)}")

    from trl_rec.scripts.parsing import run

    if verb in TRAINING:
        run(verb, partial(launch, verb), words)
    else:
        script = import_module(f"trl_rec.scripts.{SCRIPTS.get(verb, verb)}")
        run(verb, script.main, words)


def launch(verb: str, argv: list[str]) -> None:
    """Runs a training verb under `accelerate launch`.

    Args:
        verb: The verb.
        argv: The words after the verb. `--num_processes` and `--accelerate_config` (a file, or the name of a shipped
            configuration) go to `accelerate launch`. All other words go to the verb's script.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from trl_rec.compat import accelerate_launch

    for_accelerate, for_script = _split_words(argv)
    try:
        accelerate_launch([*for_accelerate, "--module", f"trl_rec.scripts.{verb}", *for_script])
    except (subprocess.CalledProcessError, ChildFailedError):
        sys.exit(2)  # the script has printed what was wrong


def usage() -> str:
    """The text of `trl-rec --help`."""
    verbs = "\n".join(f"  {verb:<11} {text}" for verb, text in VERBS.items())
    return (
        f"usage: trl-rec VERB [--config RECIPE] [--KEY VALUE ...]\n\n{verbs}\n\n"
        "RECIPE is a YAML file, or the name of a shipped recipe such as bear/ml-100k. Keys on the command line\n"
        "override those of the recipe. trl-rec VERB --help lists the keys of a verb.\n\n"
        f"{', '.join(TRAINING)} run under accelerate launch: --num_processes N starts\n"
        "N processes; --accelerate_config takes a file, or the name of a shipped file: cpu, ddp, zero2, zero3, fsdp2."
    )


def _split_words(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separates the words for `accelerate launch` from the words for the script."""
    from trl_rec.scripts.parsing import find_recipe

    for_script: list[str] = []
    for word in argv:
        for_script += word.split("=", 1) if word.startswith("--config=") else [word]
    if "--config" in for_script[:-1]:
        find_recipe(for_script[for_script.index("--config") + 1])  # a mistyped name is an error before the launch

    for_accelerate: list[str] = []
    for key in ("--accelerate_config", "--num_processes"):
        if key not in for_script[:-1]:
            continue
        place = for_script.index(key)
        value = for_script[place + 1]
        del for_script[place : place + 2]
        if key == "--accelerate_config":
            file = find_recipe(value if value.endswith(".yaml") else f"accelerate/{value}")
            for_accelerate += ["--config_file", str(file)]
        else:
            for_accelerate += [key, value]
    return for_accelerate, for_script


if __name__ == "__main__":
    main()
