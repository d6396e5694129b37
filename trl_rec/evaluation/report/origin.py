"""Makes the last section of a report: the recipe and environment of each recommender. In a report on a study, facts
about the study come first."""

from __future__ import annotations

from trl_rec.evaluation.report.blocks import Block, Facts, Section, Text
from trl_rec.evaluation.report.material import Material, Run


def origin_section(material: Material) -> Section | None:
    """Returns the section on how and where the runs were made. If a recommender has several seeds, only the run of the
    first seed is shown."""
    runs = [arm.runs[0] for arm in material.own]
    blocks: list[Block] = [] if material.study is None else [Facts(material.study.facts, "The study")]
    for run in runs:
        blocks += _blocks(run, is_open=len(runs) == 1)
    if not blocks:
        return None
    return Section(
        "origin",
        "Recipe and environment",
        "The recipes with which the runs can be repeated, and the environments in which they were made.",
        blocks,
    )


def _blocks(run: Run, *, is_open: bool) -> list[Block]:
    """Returns the recipe and the environment of a run, as far as the run folder contains them."""
    blocks: list[Block] = []
    if run.recipe:
        blocks.append(Text(f"Recipe of {run.name}", run.recipe.splitlines(), is_open))
    if run.environment:
        blocks.append(Facts(run.environment, f"Environment of {run.name}"))
    return blocks
