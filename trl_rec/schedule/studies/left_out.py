"""Decides which arms a study leaves out, before the first training.

An arm is left out in three cases: the data does not meet its needs; its largest possible gain is too small for the
study to detect; or it starts from an arm that is left out, or measures the policies of such an arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trl_rec.data import RecDataset
from trl_rec.schedule.studies.resolution import Resolution, resolution


if TYPE_CHECKING:
    from trl_rec.schedule.studies.study import Study


def leave_out_unmet(study: Study, dataset: RecDataset) -> None:
    """Leaves out the arms whose needs the data does not meet, and the arms that depend on such arms. Reports the
    reasons.

    An arm depends on another arm if it starts from the other arm's policies or measures them again.

    Raises `ValueError` if the study cannot go on without the arms that are left out.
    """
    has = {
        "users": len(dataset.test),
        "ratings": "rating" in dataset.interactions.column_names,
        "titles": dataset.catalog.titles != dataset.catalog.ids,
    }
    reasons = {
        "users": f"the test split has {has['users']} users",
        "ratings": "the log has no ratings",
        "titles": "the items have no titles",
    }
    for name, arm in study.arms.items():
        lacking = [
            reasons[key] + (f", but the arm needs {need}" if key == "users" else "")
            for key, need in arm.needs.items()
            if (has[key] < need if key == "users" else need and not has[key])
        ]
        if arm.start in study.left_out:
            lacking.append(f"it starts from {arm.start}, which is left out")
        if arm.policy in study.left_out:
            lacking.append(f"it measures the policies of {arm.policy}, which is left out")
        if lacking:
            study.left_out[name] = "; ".join(lacking)
            study.say(f"{name} is left out: {study.left_out[name]}")
    if not has["titles"]:
        study.say("the items have no titles, so the example lists on the results page show item ids")
    _check_remaining(study)


def leave_out_undecidable(study: Study, dataset: RecDataset) -> Resolution:
    """Reports the smallest difference that the study can detect, and leaves out arms whose possible gain is smaller.

    The largest possible gain of an arm over the arm named by `against` is called its headroom. If an arm is left out,
    the arms that start from its policies or measure its policies again are left out too.

    Raises `ValueError` if the study cannot go on without the arms that are left out.
    """
    config = study.config
    found = resolution(
        dataset,
        study.arms,
        config.against,
        config.primary,
        num_candidates=_num_candidates(study),
        evaluation=study.evaluation,
        split=_split(study),
        max_users=None if config.only_validation else study.evaluation.get("max_users"),
    )
    if found.smallest is None:
        study.say(
            f"{config.primary} is not measured for the baselines, so the smallest difference that this study can "
            "detect is not known beforehand"
        )
    else:
        study.say(
            f"with {found.num_users:,} {_split(study)} users, the study can detect differences in {config.primary} of "
            f"about {found.smallest:.4f} or more (a single comparison detects a true difference of "
            f"{found.smallest:.4f} with 80 % probability, if results differ little between seeds)"
        )
    _say_headroom(study, found)
    for name, arm in study.trainings.items():
        headroom = found.headroom(arm)
        if headroom is None:
            continue
        if not found.is_decidable(arm):
            study.left_out[name] = f"it can gain at most {headroom:.4f}, which is too little for this study to detect"
            study.say(f"{name} is left out: {study.left_out[name]}")
    for name, arm in study.trainings.items():
        if arm.start in study.left_out:
            study.left_out[name] = f"it starts from {arm.start}, which is left out"
            study.say(f"{name} is left out: {study.left_out[name]}")
    for name, arm in study.arms.items():
        if arm.policy in study.left_out and name not in study.left_out:
            study.left_out[name] = f"it measures the policies of {arm.policy}, which is left out"
            study.say(f"{name} is left out: {study.left_out[name]}")
    _check_remaining(study)
    return found


def _check_remaining(study: Study) -> None:
    """Raises `ValueError` if the arm named by `against` is left out, or if the baselines cannot be measured.

    Baselines that order rated candidates are measured only together with a model of `trl-rec alro`.
    """
    rankers = [name for name, arm in study.arms.items() if arm.verb == "alro"]
    if rankers and all(name in study.left_out for name in rankers):
        reasons = "; ".join(f"{name}: {study.left_out[name]}" for name in rankers)
        raise ValueError(
            f"every arm with the verb alro is left out ({reasons}), and the baselines of this study are measured only "
            "together with such an arm; change the arms"
        )
    against = study.config.against
    if against in study.left_out:
        raise ValueError(
            f"against: {against!r} is left out ({study.left_out[against]}), so the other arms cannot be compared with "
            "it; name another arm"
        )


def _split(study: Study) -> str:
    """Returns the split on which the study measures its arms."""
    return "validation" if study.config.only_validation else "test"


def _say_headroom(study: Study, found: Resolution) -> None:
    """Reports the headroom of each arm. Arms with the same headroom are reported in one line."""
    arms: dict[float, list[str]] = {}
    for name, arm in study.trainings.items():
        headroom = found.headroom(arm)
        if headroom is not None:
            arms.setdefault(headroom, []).append(name)
    for headroom, names in arms.items():
        study.say(f"{_listed(names)} can gain at most {headroom:.4f} over {study.config.against}")


def _num_candidates(study: Study) -> int:
    """Returns the number of rated candidates per list.

    Raises `ValueError` if the number is not the same for all arms of `trl-rec alro`.
    """
    counts = {arm.recipe.get("num_candidates", 10) for arm in study.arms.values() if arm.verb == "alro"}
    if len(counts) > 1:
        raise ValueError(
            f"num_candidates differs between the arms ({', '.join(map(str, sorted(counts)))}); give all arms of the "
            "study the same value"
        )
    return int(next(iter(counts), 10))


def _listed(names: Sequence[str]) -> str:
    """Returns names in words, such as `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
