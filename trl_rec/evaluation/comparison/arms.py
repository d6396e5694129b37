"""Reads the evaluations of several runs, and groups them into arms. Runs that differ only in their seed form one
arm."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import yaml

from trl_rec.evaluation.comparison.pairing import PerUser
from trl_rec.evaluation.kept.reading import KeptEvaluation, check_comparable, read_evaluation
from trl_rec.evaluation.prior_rows import PRIOR_ROW, product_row


Arms: TypeAlias = dict[str, dict[int | None, KeptEvaluation]]  # evaluations by name of the arm and by seed
# Settings of a recipe in which the runs of one arm may differ.
NOT_IN_ARM = ("seed", "data_seed", "output_dir", "run_name", "logging_dir", "hub_model_id")
RECIPE = "recipe.yaml"
SEED = re.compile(r"seed-\d+")  # name of the folder of one seed in a study


def read_arms(folders: Sequence[str | Path], names: Sequence[str] | None = None) -> Arms:
    """Reads evaluations of the same users, and groups them into arms.

    Args:
        folders (`Sequence[str | Path]`): Output folders of training commands such as `trl-rec bear`, or of
            `trl-rec evaluate`.
        names (`Sequence[str]`, *optional*): Name of the arm of each folder. By default, folders whose recipes
            (`recipe.yaml`) differ only in the settings `NOT_IN_ARM`, such as the seed and the output folder, form one
            arm. So do folders without a recipe that have the same parent folder and are named `seed-N`, as in the
            folder of a study. Any other folder without a recipe is an arm of its own. The name of an arm is the common
            beginning of its folders' names, without a trailing `seed`. For folders named `seed-N`, it is the name of
            the parent folder.

    Returns:
        `Arms`: the evaluations by name of the arm and by seed, in the order given.
    """
    if names is not None and len(names) != len(folders):
        raise ValueError(
            f"the number of names ({len(names)}) differs from the number of runs ({len(folders)}); give one name per "
            "run"
        )
    if not folders:
        raise ValueError(
            "there are no runs to compare; give the output folders of trl-rec evaluate, or of training commands "
            "such as trl-rec bear"
        )

    # 1. Read the folders, and check that they can be compared.
    evaluations = [read_evaluation(folder) for folder in folders]
    for evaluation in evaluations:
        check_comparable(evaluations[0], evaluation)
        if evaluation.recommender is None:
            raise ValueError(
                f"{evaluation.folder} contains only baselines; give the folder of a model, and name the baseline "
                "with --against"
            )

    # 2. Group the evaluations into arms.
    groups: dict[str, list[KeptEvaluation]] = {}
    for number, evaluation in enumerate(evaluations):
        key = _recipe_key(evaluation.folder) if names is None else names[number]
        groups.setdefault(key, []).append(evaluation)
    if names is None:
        groups = _named(list(groups.values()))
    return {name: _by_seed(name, group) for name, group in groups.items()}


def prior_arms(arms: Arms) -> Arms:
    """Returns the arms of a comparison, and two further arms for each arm whose runs were all evaluated with a prior.
    The first is the product of the model and the prior, named `"<arm> x prior"`. The second is the prior alone, named
    `"<arm>'s prior"`, or `"prior"` if `arms` has a single arm.
    """
    found: Arms = {}
    for name, arm in arms.items():
        found[name] = arm
        rows = {product_row(name): "product", PRIOR_ROW if len(arms) == 1 else f"{name}'s prior": "prior"}
        for row, part in rows.items():
            of_seeds = {seed: _of_part(kept, part) for seed, kept in arm.items()}
            if row not in arms and all(kept.recommender in kept.results for kept in of_seeds.values()):
                found[row] = of_seeds
    return found


def _of_part(kept: KeptEvaluation, part: str) -> KeptEvaluation:
    """Returns an evaluation whose recommender is the product of the model and the prior, or the prior alone."""
    return replace(kept, recommender=product_row(kept.recommender or "") if part == "product" else PRIOR_ROW)


def runs_of(arm: Mapping[int | None, KeptEvaluation]) -> dict[int | None, PerUser]:
    """Returns the per-user metrics of each run of an arm, by seed, as [`compare`] expects them."""
    return {seed: kept.results[kept.recommender or ""].per_user for seed, kept in arm.items()}


def _recipe_key(folder: Path) -> str:
    """Returns a string that is the same for all runs of an arm, and differs between arms."""
    path = folder / RECIPE
    if not path.is_file():
        place = Path(os.path.abspath(folder))
        return str(place.parent / "seed-*" if SEED.fullmatch(place.name) else place)
    text = path.read_text(encoding="utf-8")
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is damaged and cannot be read; name the arms with --names") from error
    if not isinstance(recipe, dict):
        return os.path.abspath(folder)
    verb = re.search(r"trl-rec (\w+)", text.splitlines()[0])
    kept = {name: value for name, value in recipe.items() if name not in NOT_IN_ARM}
    return json.dumps([verb and verb[1], kept], sort_keys=True, default=str)


def _named(groups: Sequence[list[KeptEvaluation]]) -> dict[str, list[KeptEvaluation]]:
    """Names a group of one folder by the folder's name, and a larger group by the common beginning of its folders'
    names, without a trailing `seed`. Folders named `seed-N` have the name of their parent folder instead. Groups that
    would get the same name are named by the paths of their first folders."""
    short = []
    for group in groups:
        places = [kept.folder.resolve() for kept in group]
        names = [place.parent.name if SEED.fullmatch(place.name) else place.name for place in places]
        common = names[0] if len(group) == 1 else re.sub(r"[-_. ]*(seed)?[-_. ]*$", "", os.path.commonprefix(names))
        short.append(common or names[0])
    return {
        name if short.count(name) == 1 else str(group[0].folder): group
        for name, group in zip(short, groups, strict=True)
    }


def _by_seed(name: str, group: Sequence[KeptEvaluation]) -> dict[int | None, KeptEvaluation]:
    """Returns the evaluations of an arm by seed. If the arm has several evaluations and at least one of their seeds is
    unknown, all evaluations are numbered in the order given instead."""
    if len(group) > 1 and any(kept.seed is None for kept in group):
        return dict(enumerate(group))
    by_seed: dict[int | None, KeptEvaluation] = {}
    for kept in group:
        if kept.seed in by_seed:
            raise ValueError(
                f"{by_seed[kept.seed].folder} and {kept.folder} are both runs of {name} with seed {kept.seed}; leave "
                "one of them out, or give them different names with --names"
            )
        by_seed[kept.seed] = kept
    return by_seed
