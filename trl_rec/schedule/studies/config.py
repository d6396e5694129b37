"""Configuration of a study, as it is written in YAML: data, arms, seeds, the primary measure and the comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from trl_rec.ranges import COUNT, SEED, check_ranges


@dataclass
class StudyConfig:
    """Everything that a study decides before it runs anything.

    Args:
        output_dir (`str`): The study's folder. The same command continues a study that was interrupted.
        arms (`dict`): What is compared, by name. An arm is one of:

            - `{baseline: NAME}`, a baseline of `trl-rec evaluate`, or of `trl-rec alro` for rated candidates;
            - `{lists: FILE}`, lists made elsewhere, in the format of `trl-rec evaluate --lists`;
            - a training: its `verb`, a recipe (`config`), and what differs from the recipe (`set`).

            A training may also have:

            - `grid`: values of keys (all combinations) or a list of mappings, from which the primary measure on
              validation chooses with the first seed;
            - `start`: the arm whose trained policy of the same seed the training starts from;
            - `tokenize`: keys of `trl-rec tokenize`; the arm then uses a copy of the data with IDs made by them;
            - `seeds`: some of the study's seeds;
            - `needs`: what the data must have, such as `{users: 200, ratings: true, titles: true}`;
            - `headroom`: a bound on what the arm can gain in the primary measure, if one was measured beforehand.
        against (`str`): The arm that the table compares with, and that a recommendation has to beat.
        dataset (`str`, *optional*): The dataset folder. Takes precedence over `prepare`.
        prepare (`dict`, *optional*): Keys of `trl-rec prepare`, which makes the dataset; `config` names a recipe.
        tokenize (`dict`, *optional*): Keys of `trl-rec tokenize`, which runs after `prepare`.
        seeds (`list[int]`, *optional*, defaults to `[0, 1, 2]`): Seeds of every training.
        primary (`str`, *optional*, defaults to `"ndcg@10"`): The measure that chooses from grids and that verdicts are
            about.
        metrics (`list[str]`, *optional*): Other measures that the table shows.
        comparisons (`list[str]`, *optional*): The comparisons to test, such as `"bear against sft"`. By default every
            arm is compared with `against`.
        evaluation (`dict`, *optional*): Keys of `trl-rec evaluate` for every measurement, such as `rewards`.
        recommend (`bool`, *optional*, defaults to `False`): Whether the study ends with the line "use ARM", or "no
            difference from" `against`.
        threads (`int`, *optional*, defaults to `1`): Threads per process.
        jobs (`int`, *optional*, defaults to `1`): Number of runs at the same time.
    """

    output_dir: str = field(metadata={"help": "folder of the study; the same command continues it"})
    arms: dict[str, Any] = field(metadata={"help": "what is compared: a mapping from names to arms"})
    against: str = field(metadata={"help": "name of the arm that all others are compared with"})
    dataset: str | None = field(default=None, metadata={"help": "dataset folder; takes precedence over prepare"})
    prepare: dict[str, Any] | None = field(
        default=None, metadata={"help": "keys of trl-rec prepare that make the dataset; config names a recipe"}
    )
    tokenize: dict[str, Any] | None = field(
        default=None, metadata={"help": "keys of trl-rec tokenize, which runs after prepare"}
    )
    seeds: Annotated[list[int], SEED] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "seeds of every training"}
    )
    primary: str = field(default="ndcg@10", metadata={"help": "measure that decides; best last in the table"})
    metrics: list[str] = field(default_factory=lambda: ["recall@10"], metadata={"help": "other measures to show"})
    comparisons: list[str] | None = field(
        default=None, metadata={"help": 'comparisons to test, such as "bear against sft"; all with against if unset'}
    )
    evaluation: dict[str, Any] | None = field(
        default=None, metadata={"help": "keys of trl-rec evaluate for every measurement, such as rewards"}
    )
    recommend: bool = field(
        default=False, metadata={"help": 'end with the line "use ARM", or "no difference from" against'}
    )
    threads: Annotated[int, COUNT] = field(default=1, metadata={"help": "threads per process"})
    jobs: Annotated[int, COUNT] = field(default=1, metadata={"help": "number of runs at the same time"})

    def __post_init__(self) -> None:
        check_ranges(self)
