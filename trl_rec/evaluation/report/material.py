"""Defines the data from which a report (an HTML page) is made: runs, recommenders, and optionally a study and the
dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from trl_rec.evaluation.beam_gap import BeamGap
from trl_rec.evaluation.comparison.closing import BASELINES
from trl_rec.evaluation.comparison.compare import Comparison
from trl_rec.evaluation.comparison.pairing import Runs
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.kept.reading import KeptEvaluation
from trl_rec.evaluation.report.drawing import NUM_COLORS
from trl_rec.evaluation.results import Evaluation, held_out
from trl_rec.evaluation.tables import direction_of
from trl_rec.items import ItemCatalog


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset

# Colour numbers of the recommenders that the page is about, and of baselines. Number 3 selects `--series-3` in CSS.
OWN_COLORS = (0, 1, 2, 4, 5, 8)
BASELINE_COLORS = (6, 7, 3, 9)


@dataclass(frozen=True, eq=False)
class Run:
    """The content of a run folder, or of another folder with an evaluation. Fields whose file is missing are empty.

    Args:
        name (`str`): The name of the run in the page.
        kept (`KeptEvaluation`): The evaluation.
        log (`list[dict]`): The lines of `eval.jsonl`.
        recipe (`str`): The text of the recipe.
        environment (`Sequence[tuple[str, str]]`): Names and values of `environment.json`.
        beam_gaps (`Mapping[str, BeamGap]`): The measured beam gaps, by name of the recommender.
        catalog (`ItemCatalog`, *optional*): The catalogue of the run folder.
    """

    name: str
    kept: KeptEvaluation
    log: list[dict[str, Any]] = field(default_factory=list)
    recipe: str = ""
    environment: Sequence[tuple[str, str]] = ()
    beam_gaps: Mapping[str, BeamGap] = field(default_factory=dict)
    catalog: ItemCatalog | None = None


@dataclass(frozen=True, eq=False)
class Arm:
    """A recommender: a baseline, or a model trained with one or several seeds.

    Args:
        name (`str`): The name of the recommender in the page.
        runs (`Sequence[Run]`): The run of each seed.
        rows (`Sequence[str]`): The name of the recommender in the results of each run.
        is_own (`bool`): Whether the page is about this recommender. In a study, True for all arms except baselines.
            Without a study, True only for the recommender that each run trained or evaluated.
    """

    name: str
    runs: Sequence[Run]
    rows: Sequence[str]
    is_own: bool

    @property
    def is_baseline(self) -> bool:
        """Whether the recommender is a baseline."""
        return not self.is_own and self.rows[0] in BASELINES

    @cached_property
    def seeds(self) -> list[Evaluation]:
        """The evaluation of each seed."""
        return [run.kept.results[row] for run, row in zip(self.runs, self.rows, strict=True)]

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation of the recommender. With several seeds, the metrics are means over the seeds, and the
        intervals cover the variation between seeds as well as between users."""
        seeds = self.seeds
        if len(seeds) == 1:
            return seeds[0]
        names = [name for name in seeds[0].metrics if all(name in seed.metrics for seed in seeds)]
        measured = [name for name in seeds[0].per_user if all(name in seed.per_user for seed in seeds)]
        by_seed = {name: np.stack([seed.per_user[name] for seed in seeds]) for name in measured}  # (seeds, users)
        return Evaluation(
            {name: float(np.mean([seed.metrics[name] for seed in seeds])) for name in names},
            {name: bootstrap_interval(known) for name, values in by_seed.items() if (known := _known(values)).size},
            {name: values.mean(0) for name, values in by_seed.items()},
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of [`evaluation`]."""
        return self.evaluation.metrics

    def per_user_by_seed(self) -> Runs:
        """Returns the values per user of each run, for [`compare`].

        The result is a mapping from seeds if the page is about this recommender and the seeds of its runs are known
        and distinct. Otherwise, it is a list.
        """
        seeds = [run.kept.seed for run in self.runs]
        values = [evaluation.per_user for evaluation in self.seeds]
        if self.is_own and None not in seeds and len(set(seeds)) == len(seeds):
            return dict(zip(seeds, values, strict=True))
        return values


def _known(values: np.ndarray) -> np.ndarray:
    """Removes each user whose value is missing for at least one seed. The shape is `(seeds, users)`."""
    known: np.ndarray = values[:, np.isfinite(values).all(0)]
    return known


@dataclass(frozen=True)
class Study:
    """The content of a study file besides the results of its arms.

    Args:
        name (`str`): The name of the study folder.
        primary (`str`): The primary measure, which was fixed before the first run.
        comparisons (`Sequence[Comparison]`): The results of the comparisons that were fixed before the first run.
        conclusion (`str`): The recommendation of the study, such as "use ARM". Empty if none was requested.
        left_out (`Sequence[tuple[str, str]]`): The arms that were not run, each with the reason.
        facts (`Sequence[tuple[str, str]]`): Names and values of facts such as the command and the commit.
    """

    name: str
    primary: str
    comparisons: Sequence[Comparison]
    conclusion: str
    left_out: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Material:
    """The data from which the sections of a page are made.

    Args:
        arms (`Sequence[Arm]`): The recommenders in the order of the tables.
        dataset (`RecDataset`, *optional*): The dataset that the recommenders were measured on.
        study (`Study`, *optional*): The study that the recommenders belong to.
        shows_users (`bool`, *optional*, defaults to `False`): Whether lists are headed by user ids rather than by row
            numbers.
    """

    arms: Sequence[Arm]
    dataset: RecDataset | None = None
    study: Study | None = None
    shows_users: bool = False

    @cached_property
    def own(self) -> list[Arm]:
        """The recommenders that the page is about."""
        return [arm for arm in self.arms if arm.is_own]

    @property
    def kept(self) -> KeptEvaluation:
        """One of the evaluations. All evaluations are over the same users of the same split."""
        return self.arms[0].runs[0].kept

    @cached_property
    def primary(self) -> str:
        """The metric to look at first: that of the study or, without a study, NDCG at the largest k (graded NDCG if
        the recommenders ordered rated items)."""
        if self.study is not None:
            return self.study.primary
        known = self.arms[0].metrics
        wanted = [f"{stem}@{max(self.kept.ks)}" for stem in ("ndcg", "graded_ndcg")]
        return next(name for name in [*wanted, *known] if name in known)

    @property
    def is_rated(self) -> bool:
        """Whether the recommenders ordered rated items instead of ranking the catalogue."""
        return is_rated(self.kept)

    @cached_property
    def colors(self) -> dict[str, int]:
        """The colour number of each recommender. Numbers from 10 on repeat the colours of 0 to 9 with dashed lines."""
        colors = {}
        for own, palette in ((True, OWN_COLORS), (False, BASELINE_COLORS)):
            for number, arm in enumerate(arm for arm in self.arms if arm.is_own is own):
                colors[arm.name] = palette[number % len(palette)] + NUM_COLORS * (number // len(palette))
        return colors

    def legend(self, arms: Sequence[Arm]) -> list[tuple[str, int]]:
        """Returns the names of recommenders with their colours."""
        return [(arm.name, self.colors[arm.name]) for arm in arms]

    @cached_property
    def catalog(self) -> ItemCatalog | None:
        """The catalogue of the first run folder that contains one, or else the catalogue of the dataset."""
        catalogs = [run.catalog for arm in self.own for run in arm.runs if run.catalog is not None]
        if not catalogs and self.dataset is not None:
            return self.dataset.catalog
        return catalogs[0] if catalogs else None

    @cached_property
    def split(self) -> Dataset:
        """The rows that were measured, in the order of the rankings and per-user values. Requires the dataset."""
        assert self.dataset is not None
        return held_out(self.dataset, self.kept.split).select(self.kept.users["row"])

    @cached_property
    def ranked(self) -> dict[Arm, np.ndarray]:
        """The ranked items of the first seed of each recommender that has rankings, `(num_users, K)` each."""
        ranked = {}
        for arm in self.arms:
            kept = arm.runs[0].kept
            rankings = kept.rankings_of(arm.rows[0])
            if rankings is None:
                continue
            if self.catalog is not None and rankings.items.max(initial=-1) >= len(self.catalog):
                raise ValueError(f"{kept.folder} ranks items that the catalogue does not have; evaluate again")
            ranked[arm] = rankings.items
        return ranked

    @property
    def best_own(self) -> Arm | None:
        """The recommender with the best primary metric, not counting baselines."""
        return self._best(self.own)

    @property
    def strongest_baseline(self) -> Arm | None:
        """The baseline with the best primary metric."""
        return self._best([arm for arm in self.arms if arm.is_baseline])

    def _best(self, arms: Sequence[Arm]) -> Arm | None:
        measured = [arm for arm in arms if self.primary in arm.metrics]
        sign = direction_of(self.primary) or 1
        return max(measured, key=lambda arm: sign * arm.metrics[self.primary], default=None)


def is_rated(kept: KeptEvaluation) -> bool:
    """Returns whether the recommenders of an evaluation ordered rated items instead of ranking the catalogue."""
    return any(name.startswith("graded_ndcg") for one in kept.results.values() for name in one.metrics)
