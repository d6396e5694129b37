"""Reads the arms of a study, and raises an error if they are inconsistent.

An arm is a baseline, a file of lists made elsewhere, a training, or another measurement of a training's policies.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trl_rec.evaluation.graded.baselines import RATED_BASELINES
from trl_rec.evaluation.results import BASELINES, SEQUENCE
from trl_rec.schedule.studies.config import StudyConfig


TRAINING = ("bear", "alro", "blade", "softmax_dpo", "align3gr")
# Maps each kind of arm to the keys that such an arm may have. The name of a kind, such as `baseline`, is also a key
# that all arms of this kind have. An arm of none of these kinds is a training, and may have the keys `OF_A_TRAINING`.
KINDS = {
    "baseline": {"baseline"},
    "lists": {"lists", "needs"},
    "policy": {"policy", "evaluation", "row"},
}
OF_A_TRAINING = {"verb", "config", "set", "tokenize", "grid", "start", "seeds", "headroom", "needs"}
# Rows that an arm of the kind "policy" may select: the model alone, the prior alone, and the product of both.
ROWS = ("model", "prior", "product")
# Keys of `trl-rec evaluate` that the study sets itself.
SET_OF_EVALUATION = ("dataset", "model", "output_dir", "split", "lists", "name", "baselines")
# Keys of a recipe that the study sets itself.
SET_BY_STUDY = ("dataset", "output_dir", "seed", "final_split", "resume_from_checkpoint", "overwrite")
NEEDS = {"users": int, "ratings": bool, "titles": bool}


@dataclass(frozen=True)
class Arm:
    """One of the recommenders that a study compares.

    Args:
        name: Name of the arm in the table.
        baseline (*optional*): Name of a baseline, if the arm is a baseline.
        lists (*optional*): File with the lists, if the arm consists of lists made elsewhere.
        policy (*optional*): Name of another arm, if this arm measures the other arm's policies again.
        evaluation: If `policy` is set, the keys of `trl-rec evaluate` whose values differ from those used to measure
            the other arms.
        row: If `policy` is set, the row of the evaluation to use: one of `ROWS`.
        verb (*optional*): The training verb (one of `TRAINING`), if the arm is a training. The fields below, except
            `seeds` and `needs`, are used only for trainings.
        recipe: Maps keys of the verb to values. It lacks the keys that the study sets itself.
        tokenize: Keys of `trl-rec tokenize`. If given, the arm uses a copy of the dataset whose semantic IDs are made
            with these keys.
        grid: The points (combinations of values) to choose from. Each point maps keys to values that take precedence
            over those of `recipe`. Without a grid, the only point is an empty mapping.
        start (*optional*): Name of the arm whose policy this training starts from.
        seeds: The seeds of the training. If `policy` is set, the seeds of the arm that it names.
        headroom (*optional*): Upper bound, measured beforehand, on how far this arm can exceed the arm named by
            `StudyConfig.against` in the primary measure.
        needs: What the data must have: `users` (a minimum number of test users), `ratings`, `titles`. If the data lack
            any of these, the study leaves the arm out.
    """

    name: str
    baseline: str | None = None
    lists: str | None = None
    policy: str | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    row: str = "model"
    verb: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    tokenize: dict[str, Any] = field(default_factory=dict)
    grid: tuple[dict[str, Any], ...] = ({},)
    start: str | None = None
    seeds: tuple[int, ...] = ()
    headroom: float | None = None
    needs: dict[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name of the arm's folder."""
        return slug(self.name)

    @property
    def reads_ids(self) -> bool:
        """Whether the arm is a training that reads the semantic IDs of the items."""
        if self.verb is None:
            return False
        default = default_surface(self.verb)
        return any({**self.recipe, **point}.get("surface", default) == "semantic_id" for point in self.grid)


def default_surface(verb: str) -> str:
    """Returns the surface that a training verb uses if its recipe does not set `surface`."""
    return {"align3gr": "semantic_id", "softmax_dpo": "title"}.get(verb, "item_token")


def read_arms(config: StudyConfig, read_recipe: Callable[[str], dict[str, Any]]) -> dict[str, Arm]:
    """Returns the arms by name. An arm that starts from another arm comes after that arm.

    Raises `ValueError` if arms are inconsistent.

    Args:
        config: The configuration of the study.
        read_recipe: Maps the name or file of a recipe to the keys of the recipe.
    """
    # 1. Read each arm separately.
    if len(set(config.seeds)) != len(config.seeds) or not config.seeds:
        raise ValueError(f"seeds: {config.seeds} is empty or names a seed twice; list each seed once")
    if not config.arms:
        raise ValueError("arms is empty; give at least one arm, such as 'counter: {baseline: transition}'")
    arms = {name: _read_arm(name, entry, config, read_recipe) for name, entry in config.arms.items()}
    slugs: dict[str, str] = {}
    for name, arm in arms.items():
        if arm.slug in slugs:
            raise ValueError(f"arms: {name!r} and {slugs[arm.slug]!r} would share a folder; rename one of them")
        slugs[arm.slug] = name

    # 2. Check that each baseline exists, that `only_validation` leaves no arm unmeasured, and that `policy` and
    # `start` name trainings. The arm named by `start` must have all seeds of the arm that starts from it.
    _check_baselines(arms)
    _check_measured(arms, config)
    _check_policies(arms, config)
    for name, arm in arms.items():
        if arm.start is None:
            continue
        if arm.start not in arms or arm.start == name or arms[arm.start].verb is None:
            others = [one for one in arms if one != name and arms[one].verb is not None]
            remedy = f"name one of {_listed(others)}" if others else "leave start out"
            raise ValueError(f"arms: {name}: start: {arm.start!r} is not another training of this study; {remedy}")
        lacking = [seed for seed in arm.seeds if seed not in arms[arm.start].seeds]
        if lacking:
            raise ValueError(
                f"arms: {name}: seeds: {name!r} starts from {arm.start!r}, which does not run with seed {lacking[0]}; "
                "use only seeds that both arms have"
            )
    return _in_order(arms)


def read_comparisons(config: StudyConfig, arms: Mapping[str, Arm]) -> list[tuple[str, str]]:
    """Returns the comparisons of the study as pairs of names. The first arm of a pair is compared with the second."""
    if config.against not in arms:
        raise ValueError(f"against: {config.against!r} is not an arm of this study; name one of {_listed(arms)}")
    if config.comparisons is None:
        return [(name, config.against) for name in arms if name != config.against]

    pairs: list[tuple[str, str]] = []
    for text in config.comparisons:
        parts = text.split(" against ")
        if len(parts) != 2:
            raise ValueError(f'comparisons: {text!r} does not name two arms; write it as "bear against sft"')
        for name in parts:
            if name not in arms:
                raise ValueError(
                    f"comparisons: {text!r}: {name!r} is not an arm of this study; name one of {_listed(arms)}"
                )
        if parts[0] == parts[1] or (parts[0], parts[1]) in pairs or (parts[1], parts[0]) in pairs:
            raise ValueError(
                f"comparisons: {text!r} compares an arm with itself, or repeats another comparison; leave it out"
            )
        pairs.append((parts[0], parts[1]))
    return pairs


def with_recipe(keys: Mapping[str, Any], read_recipe: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Returns `keys` without `config`. If `config` names a recipe, adds the recipe's keys that `keys` does not set."""
    own = dict(keys)
    named = own.pop("config", None)
    return {**(read_recipe(str(named)) if named is not None else {}), **own}


def slug(name: str) -> str:
    """Converts a name to a folder name.

    Each sequence of characters other than letters, digits and `.=,+_` becomes one hyphen. Hyphens and dots at both
    ends are removed.
    """
    return re.sub(r"[^\w.=,+]+", "-", name).strip("-.") or "arm"


def point_name(point: Mapping[str, Any]) -> str:
    """Returns a point of a grid in words, such as `bear_weight=2.75, variant=paper`."""
    return ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in point.items())


def _read_arm(name: str, entry: Any, config: StudyConfig, read_recipe: Callable[[str], dict[str, Any]]) -> Arm:
    """Reads one arm. Raises `ValueError` if the arm has an unknown key, or a value of the wrong type."""
    where = f"arms: {name}"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be a mapping, such as {{baseline: transition}}, not {entry!r}")
    kind = next((key for key in KINDS if key in entry), "verb")
    known = KINDS.get(kind, OF_A_TRAINING)
    unknown = sorted(set(entry) - known, key=str)
    if unknown:
        raise ValueError(
            f"{where}: there is no key {unknown[0]!r}; an arm with the key {kind!r} may have the keys "
            f"{', '.join(sorted(known))}"
        )
    if kind == "baseline":
        return Arm(name, baseline=_text(where, kind, entry[kind]))
    needs = _read_needs(where, entry.get("needs", {}))
    if kind == "lists":
        return Arm(name, lists=_text(where, kind, entry[kind]), needs=needs)
    if kind == "policy":
        return _read_policy(where, name, entry)

    # Read a training: its recipe (in which `set` overrides keys), the points of its grid, and its seeds.
    verb = _text(where, "verb", entry.get("verb"))
    if verb not in TRAINING:
        raise ValueError(f"{where}: verb: {verb!r} is not a training verb; choose one of {', '.join(TRAINING)}")
    recipe = read_recipe(_text(where, "config", entry["config"])) if "config" in entry else {}
    for key in SET_BY_STUDY:
        recipe.pop(key, None)
    recipe |= _keys(where, "set", entry.get("set", {}))
    tokenize = with_recipe(_keys(where, "tokenize", entry.get("tokenize", {})), read_recipe)
    tokenize.pop("dataset", None)
    start = None if entry.get("start") is None else _text(where, "start", entry["start"])
    if start is not None:
        recipe.pop("model_name_or_path", None)
    return Arm(
        name,
        verb=verb,
        recipe=recipe,
        tokenize=tokenize,
        grid=_read_grid(where, entry.get("grid")),
        start=start,
        seeds=_read_seeds(where, entry.get("seeds"), config.seeds),
        headroom=_read_headroom(where, entry.get("headroom")),
        needs=needs,
    )


def _read_policy(where: str, name: str, entry: Mapping[str, Any]) -> Arm:
    """Reads an arm that measures the policies of another arm. [`_check_policies`] checks the other arm."""
    evaluation = entry.get("evaluation", {})
    if not isinstance(evaluation, Mapping) or not all(isinstance(key, str) for key in evaluation):
        raise ValueError(f"{where}: evaluation must map keys of trl-rec evaluate to values, not {evaluation!r}")
    taken = [key for key in evaluation if key in SET_OF_EVALUATION]
    if taken:
        raise ValueError(f"{where}: evaluation: the study sets {taken[0]} itself; leave it out")
    row = entry.get("row", "model")
    if row not in ROWS:
        raise ValueError(f"{where}: row: {row!r} is not a row of an evaluation; choose one of {', '.join(ROWS)}")
    if not evaluation and row == "model":
        raise ValueError(f"{where}: this arm would repeat the measurement of its policy; set evaluation or row")
    return Arm(name, policy=_text(where, "policy", entry["policy"]), evaluation=dict(evaluation), row=row)


def _check_measured(arms: dict[str, Arm], config: StudyConfig) -> None:
    """Raises `ValueError` if `only_validation` is set, and an arm would therefore not be measured."""
    for name, arm in arms.items():
        if config.only_validation and (arm.policy is not None or arm.lists is not None):
            raise ValueError(
                f"arms: {name}: with only_validation, only trainings and baselines are measured; leave out this arm "
                "or only_validation"
            )


def _check_policies(arms: dict[str, Arm], config: StudyConfig) -> None:
    """Checks that each arm of the kind "policy" names a training, and gives the arm the seeds of this training."""
    for name, arm in arms.items():
        if arm.policy is None:
            continue
        trainings = [one for one in arms if arms[one].verb is not None]
        if arm.policy not in trainings:
            raise ValueError(
                f"arms: {name}: policy: {arm.policy!r} is not a training of this study; name one of "
                f"{_listed(trainings) or 'its trainings'}"
            )
        arms[name] = replace(arm, seeds=arms[arm.policy].seeds)


def _check_baselines(arms: Mapping[str, Arm]) -> None:
    """Raises `ValueError` if a baseline does not exist.

    Studies with an `alro` arm, which orders rated candidates, have baselines of their own.
    """
    is_rated = any(arm.verb == "alro" for arm in arms.values())
    known = tuple(RATED_BASELINES) if is_rated else (*BASELINES, SEQUENCE)
    for name, arm in arms.items():
        if arm.baseline is not None and arm.baseline not in known:
            what = "orders rated candidates" if is_rated else "ranks the whole catalogue"
            raise ValueError(
                f"arms: {name}: baseline: this study {what}, and has no baseline {arm.baseline!r}; choose one of "
                f"{', '.join(known)}"
            )


def _read_grid(where: str, grid: Any) -> tuple[dict[str, Any], ...]:
    """Returns the points of a grid.

    If the grid maps each key to a list of values, the points are all combinations of these values. If the grid is a
    list of mappings, each mapping is a point.
    """
    if grid is None:
        return ({},)
    if isinstance(grid, Mapping):
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{where}: grid: {key} must be a list of values, not {values!r}")
        points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    elif isinstance(grid, list):
        points = grid
    else:
        raise ValueError(
            f"{where}: grid must map keys to lists of values, such as {{learning_rate: [0.001, 0.01]}}, or be a list "
            f"of mappings, not {grid!r}"
        )
    points = [_keys(where, "grid", point) for point in points]
    if not points:
        raise ValueError(f"{where}: grid is empty; give it at least one point, or leave it out")

    names = [point_name(point) for point in points]
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise ValueError(f"{where}: grid has the point {twice[0] or '{}'} twice; list each point once")
    return tuple(points)


def _read_seeds(where: str, seeds: Any, of_study: Sequence[int]) -> tuple[int, ...]:
    """Returns the seeds of a training. The first one is the study's first seed, which is used to choose from grids."""
    if seeds is None:
        return tuple(of_study)
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(seed in of_study for seed in seeds)
        or len(set(seeds)) != len(seeds)
    ):
        raise ValueError(
            f"{where}: seeds must list some of the study's seeds {list(of_study)}, each of them once, not {seeds!r}"
        )
    if seeds[0] != of_study[0]:
        raise ValueError(f"{where}: seeds must begin with the study's first seed, {of_study[0]}, not with {seeds[0]}")
    return tuple(seeds)


def _read_headroom(where: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: headroom must be a number in units of the primary measure, not {value!r}")
    return float(value)


def _read_needs(where: str, needs: Any) -> dict[str, Any]:
    if not isinstance(needs, Mapping):
        raise ValueError(f"{where}: needs must be a mapping, such as {{users: 200}}, not {needs!r}")
    for key, value in needs.items():
        if key not in NEEDS:
            raise ValueError(f"{where}: needs: there is no key {key!r}; the keys are {', '.join(NEEDS)}")
        if type(value) is not NEEDS[key]:
            kind = "a whole number" if NEEDS[key] is int else "true or false"
            raise ValueError(f"{where}: needs: {key} must be {kind}, not {value!r}")
    return dict(needs)


def _keys(where: str, name: str, keys: Any) -> dict[str, Any]:
    """Returns a copy of `keys`. Raises `ValueError` if it is not a mapping, or contains a key that the study sets."""
    if not isinstance(keys, Mapping) or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"{where}: {name} must map keys of the recipe to values, not {keys!r}")
    taken = [key for key in keys if key in (("dataset", "output_dir") if name == "tokenize" else SET_BY_STUDY)]
    if taken:
        raise ValueError(f"{where}: {name}: the study sets {taken[0]} itself; leave it out")
    return dict(keys)


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: {key} must be a non-empty string, not {value!r}")
    return value


def _in_order(arms: dict[str, Arm]) -> dict[str, Arm]:
    """Orders the arms so that each comes after the arm that it starts from.

    Raises `ValueError` if arms start from each other in a cycle.
    """
    ordered: dict[str, Arm] = {}
    while len(ordered) < len(arms):
        ready = [
            arm for name, arm in arms.items() if name not in ordered and (arm.start is None or arm.start in ordered)
        ]
        if not ready:
            left = ", ".join(name for name in arms if name not in ordered)
            raise ValueError(f"arms: {left} start from each other; let one of them start from scratch")
        ordered |= {ready[0].name: ready[0]}
    return ordered


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
