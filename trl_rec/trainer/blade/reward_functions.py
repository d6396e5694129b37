"""Imports the reward functions that a recipe names by their import paths, such as `my_module.novelty`."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name

from trl_rec.evaluation.rewards import ListReward


def import_rewards(paths: Mapping[str, str] | None) -> dict[str, ListReward]:
    """Returns the reward functions by name.

    Raises `ValueError` if a path cannot be imported, or names something that is not a function.

    Args:
        paths: Maps the name of each reward to the import path of its function, `module.function`. The module may be a
            file in the current folder.
    """
    return {name: _import_reward(name, path) for name, path in (paths or {}).items()}


def _import_reward(name: str, path: str) -> ListReward:
    """Returns one reward function."""
    place = f"reward_functions: {name}"
    if not isinstance(path, str) or "." not in path.strip("."):
        raise ValueError(f"{place}: {path!r} is not an import path; write module.function, as in my_module.novelty")
    try:
        function = resolve_name(path)
    except Exception as error:  # the user's module may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{place}: {path} cannot be imported ({reason}); correct the path, run the command in the folder of the "
            "module, or install the module"
        ) from error
    if not callable(function):
        raise ValueError(
            f"{place}: {path} is {function!r:.60}, which is not callable; name a function that takes a ListBatch"
        )
    reward: ListReward = function
    return reward
