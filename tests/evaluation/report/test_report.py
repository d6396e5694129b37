"""Tests the report page about runs. It shows the contents of the run folders, and is reproducible. Whatever texts the
folders contain, the page runs no scripts and loads nothing."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.evaluation.report.hostile import GROUPS, NAME, TITLES, hostile_run
from trl_rec.evaluation import Evaluation, PairedComparison, bootstrap_interval, write_report
from trl_rec.evaluation.beam_gap import BeamGap
from trl_rec.evaluation.report import training
from trl_rec.evaluation.report.material import Arm, Material, Study
from trl_rec.evaluation.report.overview import _slice_cells
from trl_rec.printing import printable


ALLOWED = {  # every tag that a page may contain
    *"html head meta title style body header main nav section article h1 h2 h3 p a ul li ol dl dt dd span".split(),
    *"small div table thead tbody tr th td figure figcaption details summary pre".split(),
    *"svg g defs path use text clippath rect".split(),
}


class Page(HTMLParser):
    """Collects the tags, attributes and texts of a page, and the ids of its sections."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.anchors |= {value or "" for name, value in attributes if tag == "section" and name == "id"}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"the page contains the comment {data!r}")

    @property
    def text(self) -> str:
        return "".join(self.texts)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with hostile texts. Tests that change it must copy it."""
    return hostile_run(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def page(hostile: Path) -> Page:
    write_report([hostile], hostile.parent / "report.html")
    return Page(hostile.parent / "report.html")


def test_hostile_texts_are_shown_as_text(page: Page) -> None:
    assert page.tags <= ALLOWED
    for title in [*TITLES, *GROUPS, NAME]:
        assert printable(title.replace("ADDRESS", "http://127.0.0.1:9")) in page.text


def test_a_page_has_no_event_handlers_and_no_external_links(page: Page) -> None:
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "srcdoc", "action", "formaction", "xlink:href"), (tag, name)
        if name in ("href", "clip-path") or (name == "style" and "url" in (value or "")):
            assert (value or "").startswith(("#", "url(#")), (tag, name, value)
    policy = next(value for tag, name, value in page.attributes if name == "content" and "default-src" in str(value))
    assert "default-src 'none'" in policy and "script" not in policy


def test_no_control_character_reaches_the_page(hostile: Path, page: Page) -> None:
    text = (hostile.parent / "report.html").read_text(encoding="utf-8")
    assert all(line == printable(line) for line in text.split("\n"))


def test_equal_folders_give_equal_pages(hostile: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report([hostile], tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").stat().st_size < 500_000


def test_ids_are_distinct_and_every_reference_has_its_target(page: Page) -> None:
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = [value for _, name, value in page.attributes if name in ("href", "clip-path")]
    assert {value.removeprefix("url(").removesuffix(")")[1:] for value in references} <= set(ids)


def test_runs_of_one_name_are_seeds_of_one_recommender(hostile: Path, tmp_path: Path) -> None:
    other = shutil.copytree(hostile, tmp_path / "other")
    content = json.loads((other / "metrics.json").read_text(encoding="utf-8"))
    (other / "metrics.json").write_text(json.dumps({**content, "seed": 1}), encoding="utf-8")
    write_report([hostile, other], tmp_path / "page.html", names=["<mine>", "<mine>"])
    page = Page(tmp_path / "page.html")
    assert "<mine> against popularity: " in page.text and ", one seed. " not in page.text


def test_what_is_measured_beside_a_model_is_not_a_baseline() -> None:
    """The results of a run may have further rows, such as the model with a prior (`BEAR x prior`), or the policy that
    training started from (`before`)."""
    run: Any = SimpleNamespace(kept=SimpleNamespace(recommender="BEAR"))
    rows = ["popularity", "prior", "BEAR x prior", "BEAR", "BEAR, drawn", "BEAR, best of 8", "before"]
    arms = [Arm(row, [run], [row], is_own=row == "BEAR") for row in rows]
    assert [arm.name for arm in arms if arm.is_baseline] == ["popularity"]


@pytest.mark.parametrize(("primary", "best"), [("ndcg@10", "b"), ("pruned@10", "a")])
def test_the_best_recommender_has_the_lowest_value_if_lower_is_better(primary: str, best: str) -> None:
    def arm(name: str, value: float) -> Arm:
        kept = SimpleNamespace(recommender=name, results={name: Evaluation({primary: value})})
        run: Any = SimpleNamespace(kept=kept)
        return Arm(name, [run], [name], is_own=True)

    material = Material([arm("a", 0.1), arm("b", 0.2)], study=Study("", primary, [], "", [], []))
    assert material.best_own is not None and material.best_own.name == best


@pytest.mark.parametrize(("primary", "best"), [("ndcg@10", 1), ("pruned@10", 0), ("unknown", None)])
def test_a_slice_marks_the_best_recommender(primary: str, best: int | None) -> None:
    values = [np.array([0.1, np.nan, 0.3]), np.array([0.2, 0.2, 0.4])]
    arms: Any = [SimpleNamespace(evaluation=Evaluation({}, per_user={primary: value})) for value in values]
    material: Any = SimpleNamespace(primary=primary)
    cells = _slice_cells(material, arms, np.array([True, True, False]))
    assert [cell.text for cell in cells] == ["2", "0.1000", "0.2000"]
    assert [cell.is_best for cell in cells[1:]] == [best == 0, best == 1]


@pytest.mark.parametrize(("primary", "rises"), [("ndcg@10", "rises"), ("pruned@10", "falls")])
def test_a_learning_curve_should_fall_if_lower_is_better(
    primary: str, rises: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(training, "_panels", lambda material, signals: shown.extend(signals) or signals)
    monkeypatch.setattr(training, "_legend", lambda material: [])
    material: Any = SimpleNamespace(primary=primary, own=[])
    section = training.curves_section(material)
    assert section is not None and f"no longer {rises};" in section.says
    assert f"should {rises.removesuffix('s')}, then level off" in shown[0]


def test_a_beam_gap_is_shown(hostile: Path, tmp_path: Path) -> None:
    run = shutil.copytree(hostile, tmp_path / "run")
    gap = BeamGap(
        9, 10, {"ndcg@10": 0.1}, {"ndcg@10": 0.3}, {"ndcg@10": PairedComparison(0.2, 0.1, 0.3, 0.01)}, 8, 2, 1, 1
    )
    (run / "beam_gap.json").write_text(json.dumps({NAME: gap.to_dict()}))
    write_report([run], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "beam" in page.anchors
    for value in ("+0.2000", "+0.1000 to +0.3000", "25.0%", "0.3000"):
        assert value in page.text


def test_users_are_named_only_on_request(hostile: Path, page: Page, tmp_path: Path) -> None:
    assert "row 0" in page.text and "<u onclick=alert(1)>" not in page.text
    write_report([hostile], tmp_path / "named.html", show_users=True)
    named = Page(tmp_path / "named.html")
    assert "user <u onclick=alert(1)>" in named.text and named.tags <= ALLOWED


def test_intervals_cover_the_variation_between_seeds() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, (3, 50)) + np.array([[0.0], [0.1], [0.2]])
    values[1, 7] = np.nan  # a user for whom the metric is undefined
    runs = [
        SimpleNamespace(kept=SimpleNamespace(results={"BEAR": Evaluation({"m": 0.5}, {}, {"m": by_user})}))
        for by_user in values
    ]
    intervals = Arm("mine", runs, ["BEAR"] * 3, is_own=True).evaluation.intervals
    assert intervals["m"] == pytest.approx(bootstrap_interval(np.delete(values, 7, 1)), rel=1e-9)
