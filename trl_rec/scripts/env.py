"""`trl-rec env`: prints versions, devices, threads and installed extras as a list to paste into a bug report."""

from __future__ import annotations

import argparse
import os
import platform
import re
from importlib import metadata

from trl_rec.compat import user_environment
from trl_rec.scripts.verbs import VERBS
from trl_rec.threads import NUMBERS, PASSIVE


NOT_EXTRAS = ("test", "dev", "rivals")  # extras for developers; they are not listed


def main(argv: list[str]) -> None:
    """Prints the description of the environment as a list."""
    argparse.ArgumentParser(prog="trl-rec env", description=VERBS["env"]).parse_args(argv)
    print("\n".join(f"- {name}: {value}" for name, value in describe_environment().items()))


def describe_environment() -> dict[str, str]:
    """Returns the platform, the versions, the devices, the threads and, per extra, the versions of its packages."""
    import torch  # these imports take seconds, and --help does not need them

    from trl_rec.evaluation.kept.environment import PACKAGES

    on_gpu = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())] if on_gpu else []
    devices = [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus]
    if not devices:
        accelerator = torch.accelerator.current_accelerator()
        devices = [f"CPU, {os.cpu_count()} processors" if accelerator is None else accelerator.type]

    given = {name: value for name, value in user_environment().items() if name in NUMBERS}
    variables = {**given, **{name: os.environ[name] for name in PASSIVE if name in os.environ}}
    return {
        "platform": platform.platform(),
        "Python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "CUDA": torch.version.cuda or "none",
        "devices": "; ".join(devices),
        "threads": ", ".join([str(torch.get_num_threads()), *(f"{name}={one}" for name, one in variables.items())]),
        **{f"extra {extra}": _versions(packages) for extra, packages in _extras().items()},
    }


def _extras() -> dict[str, list[str]]:
    """Returns the packages of each extra of trl-rec, without the extras in `NOT_EXTRAS`."""
    extras: dict[str, list[str]] = {}
    for requirement in metadata.requires("trl-rec") or []:
        found = re.fullmatch(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"].*", requirement)
        if found and found[2] not in NOT_EXTRAS:
            extras.setdefault(found[2], []).append(found[1])
    return extras


def _versions(packages: list[str]) -> str:
    """Returns the versions of packages, as `name version, ...`."""
    return ", ".join(f"{package} {_version(package)}" for package in packages)


def _version(package: str) -> str:
    """Returns the version of a package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
