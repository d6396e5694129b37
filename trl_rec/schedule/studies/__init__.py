"""Runs studies, which compare recommenders ("arms") and measure each of them on the test split, once per seed."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = ["Study", "StudyConfig"]

if TYPE_CHECKING:
    from trl_rec.schedule.studies.config import StudyConfig
    from trl_rec.schedule.studies.study import Study
else:
    __getattr__, __dir__ = lazy_names(__name__, {"config": ["StudyConfig"], "study": ["Study"]})
