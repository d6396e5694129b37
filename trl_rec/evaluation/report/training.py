"""Makes the report's sections on training: learning curves, and the signals that each method logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trl_rec.evaluation.report.blocks import Charts, Panel, Section
from trl_rec.evaluation.report.drawing import Points, line_chart
from trl_rec.evaluation.report.material import Material, Run
from trl_rec.evaluation.tables import direction_of


LARGEST = 1e300  # larger numbers, infinity and NaN are not drawn
MOST_POINTS = 400  # maximum number of points of a curve; longer logs are thinned out evenly


class Signal(NamedTuple):
    """A logged quantity, with a title and a note on how to read its chart."""

    name: str
    title: str
    note: str


# All methods log the loss. The loss is not shown if a run uses BLADE, because BLADE's policy-gradient loss is 0 on
# average and shows no progress.
LOSS = Signal("loss", "training loss", "falls while the model learns")
VALIDATION = [
    Signal("eval_loss", "loss on validation users", "once it rises, the model overfits"),
    Signal("eval_reward", "reward on validation users", "the weighted sum of rewards, which training optimises"),
]
BLADE = [
    Signal("reward", "reward of sampled lists", "training increases it, so it should rise"),
    Signal(
        "blade/quantile",
        "quantile among the reference lists",
        "0.5: as good as the reference policy; 1: better than all reference lists",
    ),
    Signal(
        "blade/saturated",
        "share of lists at least as good as all reference lists",
        "if it is near 1, comparing lists with the reference lists gives almost no signal",
    ),
    Signal(
        "blade/tied_pairs",
        "tied pairs of lists",
        "among the pairs of lists for the same prompt, the share that training treats as equally good",
    ),
    Signal("blade/zero_advantages", "zero-advantage share", "share of lists that affect training only by the KL term"),
    Signal("kl", "distance from the reference (KL)", "a fast rise means that the policy drifts from the reference"),
]
DISTANCE = Signal(
    "reward",
    "reward against distance from the reference (KL)",
    "where the points stop rising, more distance gives no more reward",
)
OTHERS = [
    Signal("bear/ce", "cross-entropy of the target", "should fall"),
    Signal("bear/pruned", "share of target tokens outside the beam", "beam search loses these targets; should fall"),
    Signal(
        "bear/margin",
        "margin over the least likely token in the beam",
        "log-probability of the target token minus that of this token; should rise",
    ),
    Signal("alro/sft", "supervised loss", "should fall"),
    Signal("alro/soft_lambda", "ranking loss (soft lambda)", "should fall"),
    Signal("alro/permutation", "permutation loss", "near 0 if the order of candidates in the prompt has no effect"),
    Signal("rewards/margins", "margin of the chosen answer", "implicit reward, chosen minus rejected; should rise"),
    Signal(
        "rewards/accuracies",
        "share of chosen answers that rank first",
        "first: the implicit reward is higher than that of every rejected answer; should rise",
    ),
    Signal("logps/chosen", "log-probability of the chosen answer", "if it falls, the chosen answer gets less likely"),
]


def curves_section(material: Material) -> Section | None:
    """Returns the section with curves of the training loss and of validation metrics over the training steps."""
    rise, rises = ("fall", "falls") if direction_of(material.primary) < 0 else ("rise", "rises")
    measured = Signal(
        f"eval_{material.primary}", f"{material.primary} on validation users", f"should {rise}, then level off"
    )
    panels = _panels(material, [measured, *(VALIDATION if _is_blade(material) else [LOSS, *VALIDATION])])
    if not panels:
        return None
    return Section(
        "curves",
        "Learning curves",
        f"Training should end where {material.primary} on validation users no longer {rises}; if the curve still "
        f"{rises} at its end, train longer.",
        [Charts(panels, _legend(material))],
    )


def signal_sections(material: Material) -> list[Section]:
    """Returns sections with charts of the quantities that BLADE and the other methods log during training."""
    sections = []
    if _is_blade(material):
        over = _chart(material, DISTANCE, over="kl")
        sections.append(
            Section(
                "blade",
                "BLADE's signal",
                "BLADE learns from the differences between the lists that it samples for the same prompt. The reward "
                "should rise, while ties and the zero-advantage share stay low and the distance from the reference "
                "stays moderate.",
                [Charts([*_panels(material, BLADE), *([] if over is None else [over])], _legend(material))],
            )
        )

    others = _panels(material, OTHERS)
    if others:
        sections.append(
            Section(
                "signal",
                "Training signal",
                "Quantities that the method logs during training, per step. The remark below each chart describes how "
                "to read it.",
                [Charts(others, _legend(material))],
            )
        )
    return sections


def _is_blade(material: Material) -> bool:
    """Returns whether at least one run logged BLADE's signal."""
    logs = [run.log for arm in material.own for run in arm.runs]
    return any(name.startswith("blade/") for log in logs for entry in log for name in entry)


def _panels(material: Material, signals: Sequence[Signal]) -> list[Panel]:
    """Returns one chart per quantity that was logged."""
    charts = [_chart(material, signal) for signal in signals]
    return [chart for chart in charts if chart is not None]


def _chart(material: Material, signal: Signal, *, over: str = "step") -> Panel | None:
    """Draws a logged quantity as curves over the steps, or as points over another logged quantity (`over`).

    Each run has one curve or one set of points, in the colour of its recommender. Returns None if no run has at least
    two points.
    """
    curves = [
        (points, material.colors[arm.name])
        for arm in material.own
        for run in arm.runs
        if len(points := _points(run, signal.name, over)) > 1
    ]
    if not curves:
        return None
    label = "step" if over == "step" else over.upper()
    svg = line_chart(curves, label=signal.title, x_label=label, marks_only=over != "step")
    return Panel(svg, signal.title, signal.note)


def _points(run: Run, name: str, over: str) -> Points:
    """Returns the logged points of a quantity, thinned out evenly. The last point is always kept."""
    points = [(float(entry[over]), float(entry[name])) for entry in run.log if _is_number(entry, over, name)]
    stride = -(-len(points) // MOST_POINTS) or 1
    return [*points[:-1:stride], *points[-1:]]


def _is_number(entry: Mapping[str, Any], *names: str) -> bool:
    """Returns whether the values of the names in a log entry are numbers that a chart can show."""
    return all(isinstance(value := entry.get(name), int | float) and abs(value) < LARGEST for name in names)


def _legend(material: Material) -> list[tuple[str, int]]:
    """Returns the recommenders and their colours, without baselines; nothing if there is only one recommender."""
    return material.legend(material.own) if len(material.own) > 1 else []
