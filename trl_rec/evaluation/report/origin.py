"""The last section of a page: the recipe and the environment of each run, and the facts of a study."""

from __future__ import annotations

from trl_rec.evaluation.report.blocks import Block, Facts, Section, Text
from trl_rec.evaluation.report.material import Material, Run


def origin_section(material: Material) -> Section | None:
    """How the runs were made, and where. Of several seeds, the first is shown."""
    runs = [arm.runs[0] for arm in material.own]
    blocks: list[Block] = [] if material.study is None else [Facts(material.study.facts, "The study")]
    for run in runs:
        blocks += _blocks(run, is_open=len(runs) == 1)
    if not blocks:
        return None
    return Section(
        "origin",
        "Recipe and environment",
        "What to run to get the same figures, and with which versions they were made.",
        blocks,
    )


def _blocks(run: Run, *, is_open: bool) -> list[Block]:
    """The recipe and the environment of a run, where it has them."""
    blocks: list[Block] = []
    if run.recipe:
        blocks.append(Text(f"Recipe of {run.name}", run.recipe.splitlines(), is_open))
    if run.environment:
        blocks.append(Facts(run.environment, f"Environment of {run.name}"))
    return blocks
