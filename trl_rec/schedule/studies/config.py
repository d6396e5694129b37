"""Defines the keys of a study's recipe: the data, the arms, the seeds, the primary measure and the comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from trl_rec.ranges import COUNT, SEED, check_ranges


@dataclass
class StudyConfig:
    """The configuration of a study.

    Once the study has started, only `threads` and `jobs` may change, and `output_dir` if the folder has been moved.

    Args:
        output_dir (`str`): The study's folder. The same command continues a study that was interrupted.
        arms (`dict`): The arms to compare, by name. An arm is one of:

            - `{baseline: NAME}`, a baseline of `trl-rec evaluate`, or of `trl-rec alro` for rated candidates;
            - `{lists: FILE}`, lists made elsewhere, in the format of `trl-rec evaluate --lists`;
            - `{policy: ARM, evaluation: {...}}`, the policies (trained models, one per seed) of another arm, measured
              again with other keys of `trl-rec evaluate`, such as `num_beams`. For policies with a prior, `row: prior`
              selects the results of the prior alone, and `row: product` those of the model multiplied by the prior.
              Without `evaluation`, the results are taken from the measurements of the other arm;
            - a training, given by its `verb`, its recipe (`config`), and keys that override the recipe (`set`).

            A training may also have:

            - `grid`: the points (combinations of values of recipe keys) to try, as a list of values per key (all
              combinations) or as a list of mappings. Every point is trained with the first seed, and the point that is
              best on validation by the measure `choose_by` is chosen;
            - `start`: name of another arm. The training starts from that arm's policy for the same seed;
            - `tokenize`: keys of `trl-rec tokenize`. The arm then uses a copy of the dataset whose semantic IDs are
              made with these keys;
            - `seeds`: the seeds of this training, if it uses only some of the study's seeds. The first one must be the
              study's first seed;
            - `needs`: what the data must have. For example, `{users: 200, ratings: true, titles: true}` asks for at
              least 200 test users, ratings, and titles. If the data does not meet all needs of an arm, the arm is left
              out. An arm with `lists` may also have this key;
            - `headroom`: an upper bound, measured beforehand, on how far this arm can exceed the arm named by
              `against` in the primary measure. It takes precedence over the study's own estimate. If it is below the
              smallest difference that the study can detect, the arm is left out.
        against (`str`): Name of the arm that the other arms are compared with. Another arm is recommended only if it
            is better than the arm named here.
        dataset (`str`, *optional*): The dataset folder. Takes precedence over `prepare`.
        prepare (`dict`, *optional*): Keys of `trl-rec prepare`, which makes the dataset. The key `config` names a
            recipe.
        tokenize (`dict`, *optional*): Keys of `trl-rec tokenize`, which makes the semantic IDs of the dataset. The key
            `config` names a recipe.
        seeds (`list[int]`, *optional*, defaults to `[0, 1, 2]`): Seeds of the trainings.
        primary (`str`, *optional*, defaults to `"ndcg@10"`): Measure in which arms are compared.
        choose_by (`str`, *optional*): Measure on validation by which the study chooses the points of grids. The same
            measure selects the arm to recommend if several arms are better than the arm named by `against`. Defaults
            to `primary`. Set `choose_by` if trainings do not compute `primary` on validation (for example, if
            `primary` is `pruned@10`).
        only_validation (`bool`, *optional*, defaults to `False`): Whether the study ends after the trainings, and
            compares them on validation. No arm is then measured on the test split.
        metrics (`list[str]`, *optional*, defaults to `["recall@10"]`): Other measures to show in the table.
        comparisons (`list[str]`, *optional*): The pairs of arms to compare, such as `"bear against sft"`. By default,
            every other arm is compared with the arm named by `against`.
        evaluation (`dict`, *optional*): Keys of `trl-rec evaluate` for the measurements on the test split, such as
            `rewards`.
        recommend (`bool`, *optional*, defaults to `False`): Whether to end with a recommendation about X, the arm
            named by `against`, and the arms that are compared with it. The recommendation is one of:

            - "use ARM". This arm is better than X. If the arm is X itself, some arms are worse than X, and none is
              better;
            - "use one of ARMS". These arms are better than X, but not all of them have a validation measure by which
              to choose one;
            - "no difference from X". No arm is better or worse than X.
        threads (`int`, *optional*, defaults to `1`): Threads per process.
        jobs (`int`, *optional*, defaults to `1`): Number of runs at the same time.
    """

    output_dir: str = field(metadata={"help": "folder of the study; the same command continues an interrupted study"})
    arms: dict[str, Any] = field(metadata={"help": "the arms to compare: a mapping from names to arms"})
    against: str = field(metadata={"help": "name of the arm that the other arms are compared with"})
    dataset: str | None = field(default=None, metadata={"help": "dataset folder; takes precedence over prepare"})
    prepare: dict[str, Any] | None = field(
        default=None, metadata={"help": "keys of trl-rec prepare that make the dataset; config names a recipe"}
    )
    tokenize: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "keys of trl-rec tokenize that make the dataset's semantic IDs; config names a recipe"},
    )
    seeds: Annotated[list[int], SEED] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "seeds of the trainings"}
    )
    primary: str = field(
        default="ndcg@10",
        metadata={"help": "measure used to compare arms and, unless choose_by is set, to choose from grids"},
    )
    choose_by: str | None = field(
        default=None, metadata={"help": "measure used to choose from grids on validation; primary if unset"}
    )
    only_validation: bool = field(
        default=False, metadata={"help": "end after the trainings, and compare them on validation"}
    )
    metrics: list[str] = field(default_factory=lambda: ["recall@10"], metadata={"help": "other measures to show"})
    comparisons: list[str] | None = field(
        default=None,
        metadata={
            "help": 'pairs of arms to compare, such as "bear against sft"; by default, every other arm is compared '
            "with the arm named by against"
        },
    )
    evaluation: dict[str, Any] | None = field(
        default=None, metadata={"help": "keys of trl-rec evaluate for the test split, such as rewards"}
    )
    recommend: bool = field(
        default=False,
        metadata={
            "help": 'end with "use ARM", "use one of ARMS" or "no difference from X", where X is the arm named by '
            "against"
        },
    )
    threads: Annotated[int, COUNT] = field(default=1, metadata={"help": "threads per process"})
    jobs: Annotated[int, COUNT] = field(default=1, metadata={"help": "number of runs at the same time"})

    @property
    def choice_measure(self) -> str:
        """The measure used to choose from grids."""
        return self.choose_by or self.primary

    def __post_init__(self) -> None:
        check_ranges(self)
