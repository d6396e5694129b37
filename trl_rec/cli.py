"""`trl-rec VERB`: forwards a verb to its script. Help answers at once, since nothing heavy is loaded before a verb is
known."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from importlib import import_module

from trl_rec.version import __version__


VERBS = {
    "prepare": "make a dataset folder from an interaction log and a catalogue",
    "tokenize": "give the items of a dataset folder semantic IDs",
    "bear": "fine-tune so that each target stays inside the beam (weight 0: MSL; over the vocabulary: SFT)",
    "blade": "align whole lists to accuracy, diversity and fairness, with a Best-of-N target that moves with the policy",
    "alro": "fine-tune so that a user's rated candidates are put in order, whatever order they are shown in",
    "softmax_dpo": "train on one chosen and several rejected completions a prompt",
    "align3gr": "semantic IDs, fine-tuning on several tasks, then preference training in stages; or the stages alone",
    "evaluate": "rank a split with baselines and, if given, a model; print a table, write metrics.json",
    "recommend": "list what a trained model recommends to a user, or after some titles",
    "recipe": "print a shipped recipe to copy and change, or the names of all",
}
SCRIPTS = {"tokenize": "tokenizing"}  # a tokenize.py would hide Python's own from every script that is run by its path
TRAINING = ("bear", "alro", "blade", "softmax_dpo", "align3gr")  # these go through accelerate launch


def main(argv: list[str] | None = None) -> None:
    """Runs the verb."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] == "--version":
        print(__version__)
        return
    if argv[0] not in VERBS:
        sys.exit(f"trl-rec: there is no verb {argv[0]!r}; choose one of {', '.join(VERBS)}")
    from trl_rec.scripts.parsing import run

    if argv[0] in TRAINING:
        run(argv[0], partial(launch, argv[0]), argv[1:])
    else:
        run(argv[0], import_module(f"trl_rec.scripts.{SCRIPTS.get(argv[0], argv[0])}").main, argv[1:])


def launch(verb: str, argv: list[str]) -> None:
    """Runs a training verb under `accelerate launch`; `--accelerate_config` takes a file or the name of a shipped
    one."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from trl_rec.compat import accelerate_launch
    from trl_rec.scripts.parsing import find_recipe

    own: list[str] = []
    for word in argv:
        own += word.split("=", 1) if word.startswith("--config=") else [word]
    for_accelerate: list[str] = []
    if "--config" in own[:-1]:
        find_recipe(own[own.index("--config") + 1])  # a mistyped name is told before anything is launched
    for key in ("--accelerate_config", "--num_processes"):
        if key in own[:-1]:
            place = own.index(key)
            value = own[place + 1]
            del own[place : place + 2]
            if key == "--accelerate_config":
                key, value = (
                    "--config_file",
                    str(find_recipe(value if value.endswith(".yaml") else f"accelerate/{value}")),
                )
            for_accelerate += [key, value]
    try:
        accelerate_launch([*for_accelerate, "--module", f"trl_rec.scripts.{verb}", *own])
    except (subprocess.CalledProcessError, ChildFailedError):  # the verb has said why
        sys.exit(2)


def usage() -> str:
    """What `trl-rec --help` prints."""
    verbs = "\n".join(f"  {verb:<11} {text}" for verb, text in VERBS.items())
    return (
        f"usage: trl-rec VERB [--config RECIPE] [--KEY VALUE ...]\n\n{verbs}\n\n"
        "RECIPE is a YAML file, or a shipped one's name such as bear/ml-100k; any key can be given on the command line.\n"
        "trl-rec VERB --help lists a verb's keys."
    )


if __name__ == "__main__":
    main()
