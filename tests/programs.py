"""Loads programs that are outside the package, such as benchmarks and examples, for tests of their functions."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


ROOT = Path(__file__).parents[1]


def load_program(path: str) -> ModuleType:
    """Loads a program as a module, without running its `main`.

    Args:
        path: The file, relative to the root of the project.
    """
    spec = spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
