"""Makes the first section of a report: sentences that compare recommenders with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from trl_rec.evaluation.comparison.compare import Comparison, compare
from trl_rec.evaluation.comparison.pairing import Runs
from trl_rec.evaluation.report.blocks import Block, Facts, Note, Section, Verdict, Verdicts
from trl_rec.evaluation.report.material import Arm, Material, Study


REMARK = (
    "Differences are paired by user and by seed. p is adjusted by Holm's method for all comparisons with the same "
    "reference and metric. With one seed, a verdict is about the trained models, not about their methods."
)


def verdicts_section(material: Material) -> Section | None:
    """Returns the section with the verdicts, or None if there is nothing to compare.

    A study defines its own comparisons. Without a study, all trained models are compared with the strongest baseline
    and with the first trained model. If the report contains only baselines, each of them is compared with the
    strongest one.
    """
    if material.study is not None:
        blocks = _study_blocks(material.study)
    else:
        comparisons = _comparisons(material)
        if not comparisons:
            return None
        blocks = [Verdicts([_verdict(comparison) for comparison in comparisons]), Note(REMARK)]
    return Section(
        "verdicts",
        "Verdicts",
        "The verdicts show which differences are too large to be due to chance alone. A difference counts only if "
        "chance alone would produce a difference of this size in fewer than 1 of 20 comparisons.",
        blocks,
    )


def _study_blocks(study: Study) -> list[Block]:
    """Returns blocks with a study's conclusion (such as "use ARM"), its comparisons, and the arms it left out."""
    conclusion = [Verdict(study.conclusion, "better" if study.conclusion.startswith("use ") else "open")]
    verdicts = [*(conclusion if study.conclusion else []), *map(_verdict, study.comparisons)]
    return [
        Verdicts(verdicts),
        Note(
            f"The measure {study.primary} and these comparisons were fixed before the first run. Differences are "
            "paired by user and by seed. p is adjusted by Holm's method for all comparisons."
        ),
        *([Facts(study.left_out, "Left out")] if study.left_out else []),
    ]


def _comparisons(material: Material) -> list[Comparison]:
    """Makes the comparisons of a report without a study, as described in [`verdicts_section`]."""
    own = material.own
    references = [arm for arm in (material.strongest_baseline, *own[:1]) if arm is not None]
    if not own:
        own = list(material.arms)
    found = []
    for reference in references:
        others = [arm for arm in own if arm is not reference]
        for metric in dict.fromkeys((material.primary, "reward")):
            found += _compared(others, reference, metric)
    return found


def _compared(others: Sequence[Arm], reference: Arm, metric: str) -> list[Comparison]:
    """Compares recommenders with a reference. Recommenders without per-user values of the metric are left out."""
    arms = [arm for arm in (*others, reference) if metric in arm.evaluation.per_user]
    if reference not in arms or len(arms) < 2:
        return []
    runs: dict[str, Runs] = {arm.name: arm.per_user_by_seed() for arm in arms}
    return compare(runs, against=reference.name, metric=metric)


def _verdict(comparison: Comparison) -> Verdict:
    """Returns the verdict of a comparison in words, followed by the numbers that were compared."""
    p_value = "below .001" if comparison.adjusted_p < 0.001 else f"{comparison.adjusted_p:.3f}"
    text = (
        f"{comparison.name} against {comparison.against}: {comparison.verdict}. {comparison.metric} "
        f"{comparison.mean:.4f} against {comparison.reference:.4f}, difference {comparison.difference:+.4f} "
        f"(95 % interval {comparison.low:+.4f} to {comparison.high:+.4f}), adjusted p {p_value}."
    )
    outcomes: tuple[Literal["better", "worse"], ...] = ("better", "worse")
    return Verdict(text, next((word for word in outcomes if comparison.verdict.startswith(word)), "open"))
