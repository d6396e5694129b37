"""Imports public names on first use (PEP 562), so that `import trl_rec` takes milliseconds."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the functions `__getattr__` and `__dir__` for a package.

    Type checkers do not see the names that these functions provide, so each package also imports its public names
    under `TYPE_CHECKING`.

    Args:
        package: The package's `__name__`.
        modules: Maps the name of each module, relative to the package, to the public names that it provides.
    """
    homes = {name: f"{package}.{module}" for module, names in modules.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    def __dir__() -> list[str]:
        return sorted(homes)

    return __getattr__, __dir__
