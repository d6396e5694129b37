"""Prints the oldest versions of the dependencies that setup.cfg allows, as constraints for pip.

torch is left out, because `make test-oldest` takes the version of torch from constraints.txt.
"""

import re
from configparser import ConfigParser
from pathlib import Path


def oldest(text: str) -> list[str]:
    """Returns `name==version` for each requirement with a lower bound in the text of a setup.cfg, except for torch."""
    parser = ConfigParser(interpolation=None)
    parser.read_string(text)
    requirements = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    bounds = re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\w.]+)", "\n".join(requirements), flags=re.MULTILINE)
    return [f"{name}=={version}" for name, version in bounds if name != "torch"]


if __name__ == "__main__":
    print("\n".join(oldest((Path(__file__).parents[1] / "setup.cfg").read_text(encoding="utf-8"))))  # noqa: T201
