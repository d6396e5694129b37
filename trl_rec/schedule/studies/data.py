"""Makes the dataset of a study, and copies of this dataset for arms that have their own semantic IDs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trl_rec.data import RecDataset, load
from trl_rec.files import atomic_folder
from trl_rec.schedule.studies.runs import Run
from trl_rec.semantic_ids.storage import CARD as IDS_CARD


if TYPE_CHECKING:
    from trl_rec.schedule.studies.study import Study

# The file in the dataset folder that each command writes last. A command whose file is missing is run again, even if
# an earlier call of the study finished it. The file is missing if the dataset was removed, or if `prepare` has
# replaced the dataset by one without semantic IDs.
LAST_FILE = {"prepare": "card.json", "tokenize": f"catalog/{IDS_CARD}"}


def make_dataset(study: Study) -> RecDataset:
    """Makes and loads the dataset of a study.

    Runs `trl-rec prepare` unless a dataset folder is given, and `trl-rec tokenize` if the study has settings for it.
    """
    runs = []
    if study.config.dataset is None:
        keys = {name: value for name, value in study.made["prepare"].items() if name != "output_dir"}
        runs.append(Run("prepare", "prepare", keys, Path(study.dataset_folder)))
    if study.made["tokenize"]:
        runs.append(Run("tokenize", "tokenize", {**study.made["tokenize"], "dataset": study.dataset_folder}, Path()))
    for run in runs:
        _prepare(study, run)
    return load(study.dataset_folder)


def make_ids(study: Study) -> None:
    """Copies the dataset for each arm with semantic IDs of its own, and makes these IDs.

    Arms with the same settings of `tokenize` share a copy.
    """
    for arm in study.trainings.values():
        folder = Path(study.dataset_of(arm))
        if not arm.tokenize:
            continue
        keys = {**arm.tokenize, "dataset": str(folder)}
        run = Run(f"semantic IDs of {arm.name}", "tokenize", keys, folder.with_name(f"{folder.name}-ids"))
        if not folder.is_dir():
            run.record.unlink(missing_ok=True)  # if the copy was removed, its IDs must be made again
            with atomic_folder(folder) as copy:
                shutil.copytree(study.dataset_folder, copy, dirs_exist_ok=True)
        study.finish([replace(run, has_folder=False, study=study.folder)], "tokenize")


def _prepare(study: Study, run: Run) -> None:
    """Runs `trl-rec prepare` or `trl-rec tokenize`, unless this run is finished and its last file still exists."""
    run = replace(run, path=study.folder / "data" / run.verb)
    keys = {"output_dir": study.dataset_folder} if run.verb == "prepare" else {}
    run = replace(run, keys={**run.keys, **keys}, has_folder=False, study=study.folder)
    if not (Path(study.dataset_folder) / LAST_FILE[run.verb]).is_file():
        run.record.unlink(missing_ok=True)
    study.finish([run], run.verb)
