"""Runs the command `trl-rec VERB`, which forwards each verb to its script.

Heavy libraries are imported only after the verb has been recognised, so `trl-rec --help` is fast.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from trl_rec.scripts.interrupts import REMEDIES, SAID, TRAINING_REMEDY, Interrupted, end, handling
from trl_rec.scripts.options.help_pages import print_help, wants_help
from trl_rec.scripts.running import run
from trl_rec.scripts.verbs import LAUNCH, LAUNCH_KEYS, OWN_HELP, SCRIPTS, TRAINING, VERBS
from trl_rec.version import __version__


if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: list[str] | None = None) -> None:
    """Runs a verb.

    Args:
        argv: The words of the command line, starting with the verb. Defaults to the command line of this process.
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
    if verb not in OWN_HELP and wants_help(words):
        print_help(verb, words)
        return

    # The import below may take seconds, so an interrupt may arrive before `run` can handle it.
    try:
        if verb in TRAINING:
            main_of_verb = partial(launch, verb)
        else:
            main_of_verb = import_module(f"trl_rec.scripts.{SCRIPTS.get(verb, verb)}").main
    except KeyboardInterrupt:
        end(verb, signal.SIGINT, training=verb in TRAINING)
    run(verb, main_of_verb, words)


def launch(verb: str, argv: list[str]) -> None:
    """Runs a training verb under `accelerate launch`.

    Args:
        verb: The verb.
        argv: The words after the verb. `num_processes` and `accelerate_config` (a file, or the name of a shipped
            configuration) are passed to `accelerate launch`, whether they are set in `argv` or in the recipe that
            `--config` names. All other words are passed to the verb's script.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from trl_rec.compat import accelerate_launch

    options, for_script = _split_words(argv)
    for_accelerate = _accelerate_words(options)
    forward = _Forward()
    with TemporaryDirectory() as folder:
        os.environ[SAID] = f"{folder}/said"
        os.environ[LAUNCH] = json.dumps(options)
        try:
            with handling(forward):
                accelerate_launch([*for_accelerate, "--module", f"trl_rec.scripts.{verb}", *for_script])
            return
        except SignalException as error:  # torch has already ended the launched processes
            number = int(error.sigval)
        except (subprocess.CalledProcessError, ChildFailedError) as error:
            if forward.number is None:
                _end_failed(verb, error)
            number = forward.number
        finally:
            is_said = Path(os.environ.pop(SAID)).exists()
            del os.environ[LAUNCH]

    if is_said:
        sys.exit(128 + number)
    raise Interrupted(number)  # the signal arrived before the script could print how to resume


def _end_failed(verb: str, error: subprocess.CalledProcessError | ChildFailedError) -> NoReturn:
    """Ends this process after a launched process has failed.

    Prints a message only if the launched process was killed by a signal. Otherwise, the launched process has already
    printed its error.
    """
    if isinstance(error, subprocess.CalledProcessError):
        status = error.returncode
    else:
        status = error.get_first_failure()[1].exitcode
    if status >= 0:
        sys.exit(2)
    remedy = REMEDIES.get(verb, TRAINING_REMEDY)
    print(f"trl-rec {verb}: a process was killed by {signal.Signals(-status).name}; {remedy}", file=sys.stderr)
    sys.exit(128 - status)


class _Forward:
    """Signal handler that forwards signals to the launched process.

    The current process does not end, but continues to wait for the launched process.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Forwards a signal. Raises `Interrupted` if there is no launched process yet."""
        from trl_rec.compat import child_processes

        self.number = number
        children = child_processes()
        if not children:
            raise Interrupted(number)
        for child in children:
            os.kill(child, number)


def usage() -> str:
    """Returns the text of `trl-rec --help`."""
    verbs = "\n".join(f"  {verb:<11} {text}" for verb, text in VERBS.items())
    return (
        f"usage: trl-rec VERB [--config RECIPE] [--KEY VALUE ...]\n\n{verbs}\n\n"
        "RECIPE is a YAML file, or the name of a shipped recipe such as bear/ml-100k. Keys on the command line\n"
        "override those of the recipe. 'trl-rec VERB --help' describes the keys of a verb; --help_all adds those of\n"
        "TRL and Transformers.\n\n"
        f"The verbs {', '.join(TRAINING)} run under 'accelerate launch'.\n"
        "--num_processes N starts N processes. --accelerate_config takes a file, or the name of a shipped\n"
        "configuration: cpu, ddp, zero2, zero3, fsdp2."
    )


def _split_words(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the options for `accelerate launch`, and all other words of the command line.

    Options are read from the command line and the recipe. The command line takes precedence.
    """
    from trl_rec.scripts.options.recipe_files import find_recipe, read_recipe

    # 1. Split words such as --config=FILE, and read the options of the recipe. A wrong recipe name raises an error
    # here, before the launch.
    for_script: list[str] = []
    joined = tuple(f"--{key}=" for key in ("config", *LAUNCH_KEYS))
    for word in argv:
        for_script += word.split("=", 1) if word.startswith(joined) else [word]
    options: dict[str, Any] = {}
    if "--config" in for_script[:-1]:
        recipe = read_recipe(find_recipe(for_script[for_script.index("--config") + 1]))
        options = {key: recipe[key] for key in LAUNCH_KEYS if key in recipe}

    # 2. Take the options out of the command line.
    for key in LAUNCH_KEYS:
        if f"--{key}" in for_script[:-1]:
            place = for_script.index(f"--{key}")
            options[key] = for_script[place + 1]
            del for_script[place : place + 2]

    # 3. Check the values.
    if "num_processes" in options:
        if not str(options["num_processes"]).isdecimal():
            raise ValueError(f"num_processes must be a whole number, not {options['num_processes']!r}")
        options["num_processes"] = int(options["num_processes"])
    if not isinstance(options.get("accelerate_config", ""), str):
        raise ValueError(
            "accelerate_config must be a file, or the name of a shipped configuration, not "
            f"{options['accelerate_config']!r}"
        )
    return options, for_script


def _accelerate_words(options: dict[str, Any]) -> list[str]:
    """Converts the options to words for the command line of `accelerate launch`.

    `options["accelerate_config"]` is a file, or the name of a shipped configuration.
    """
    from trl_rec.scripts.options.recipe_files import recipes_folder

    words = []
    if "accelerate_config" in options:
        name = options["accelerate_config"]
        shipped = {path.stem: path for path in sorted((recipes_folder() / "accelerate").glob("*.yaml"))}
        file = Path(name) if Path(name).is_file() else shipped.get(name)
        if file is None:
            raise ValueError(
                f"accelerate_config {name!r} is neither a file nor a shipped configuration; the shipped ones are "
                f"{', '.join(shipped)}"
            )
        words += ["--config_file", str(file)]
    if "num_processes" in options:
        words += ["--num_processes", str(options["num_processes"])]
    return words


if __name__ == "__main__":
    main()
