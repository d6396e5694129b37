"""Writes a report on one or several runs, or on a study: one HTML file that needs no other file and no network.

The page has no scripts. A Content-Security-Policy in its head forbids scripts, frames, images and all connections, in
case an item's title is not escaped correctly. Nothing in the page depends on the time of writing, so the same folders
always give the same page.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trl_rec.evaluation.report.blocks import Section
from trl_rec.evaluation.report.drawing import NUM_COLORS
from trl_rec.evaluation.report.items import codes_section, groups_section, lists_section
from trl_rec.evaluation.report.material import Material
from trl_rec.evaluation.report.origin import origin_section
from trl_rec.evaluation.report.overview import beam_section, plane_section, results_section, slices_section
from trl_rec.evaluation.report.reading import read_material
from trl_rec.evaluation.report.training import curves_section, signal_sections
from trl_rec.evaluation.report.verdicts import verdicts_section
from trl_rec.files import write_text
from trl_rec.printing import printable


MOST_IN_TITLE = 5  # maximum number of recommenders that a title names
FOLDER = Path(__file__).parent  # contains the template and the style sheet


def write_report(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    names: Sequence[str] | None = None,
    dataset: str | Path | None = None,
    show_users: bool = False,
) -> None:
    """Writes a report on runs, evaluations or a study.

    Args:
        sources (`Sequence[str | Path]`): Run folders and output folders of `trl-rec evaluate`, all evaluated on the
            same users; or one study folder.
        output (`str` or `Path`): The HTML file. An existing file is replaced.
        names (`Sequence[str]`, *optional*): A name per folder. Folders that are given the same name count as runs of
            one recommender with different seeds. By default, runs whose recipes differ only in the seed form one
            recommender.
        dataset (`str` or `Path`, *optional*): The dataset folder, which contains the histories and the items that
            users chose next. Defaults to the folder that the runs were measured on, if that folder still contains
            the same dataset.
        show_users (`bool`, *optional*, defaults to `False`): Whether the heading of each list shows the user id. By
            default, it shows the number of the user's row in the split.
    """
    write_text(output, render(read_material(sources, names=names, dataset=dataset, show_users=show_users)))


def render(material: Material) -> str:
    """Returns the text of the page."""
    sections: list[Section | None] = [
        verdicts_section(material),
        results_section(material),
        plane_section(material),
        curves_section(material),
        *signal_sections(material),
        groups_section(material),
        codes_section(material),
        slices_section(material),
        beam_section(material),
        lists_section(material),
        origin_section(material),
    ]
    environment = _environment()
    style = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))
    page = environment.get_template("page.html")
    return page.render(
        title=_title(material),
        facts=_facts(material),
        style=style,
        num_colors=NUM_COLORS,
        sections=[section for section in sections if section is not None],
    )


def _title(material: Material) -> str:
    """Returns the title of the page, made from the name of the study or the names of the recommenders."""
    if material.study is not None:
        return f"Study {material.study.name}"
    names = [arm.name for arm in material.own] or ["Baselines"]
    if len(names) > MOST_IN_TITLE:
        names = [*names[: MOST_IN_TITLE - 1], f"{len(names) - MOST_IN_TITLE + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _facts(material: Material) -> list[str]:
    """Returns sentences on what was measured, which are shown below the title."""
    kept = material.kept
    folder = kept.settings.get("dataset")
    where = f" of {Path(folder).name}" if isinstance(folder, str) else ""
    history = "are excluded from" if kept.exclude_history else "may appear in"
    what = (
        "Each recommender orders items that the user rated."
        if material.is_rated
        else f"Items of a user's history {history} the lists."
    )
    return [f"Measured on {kept.num_users:,} users in the {kept.split} split{where}. {what}"]


@cache
def _environment() -> Environment:
    """Returns the Jinja environment that loads the template. It escapes every text that is inserted, and removes
    control characters from the text."""
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_clean,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )


def _clean(value: object) -> object:
    """Removes control characters from a text. Charts and the style sheet are returned unchanged."""
    return value if isinstance(value, Markup) else printable(str(value))
