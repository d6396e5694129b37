"""The workflows, the citation, the issue template and the table of supported versions agree with the project."""

import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml


ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
LIBRARIES = ("torch", "trl", "transformers")


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def setup() -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.read_string(read("setup.cfg"))
    return parser


def pythons(setup: ConfigParser) -> list[str]:
    return re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in WORKFLOWS])
def test_workflows_run_targets_and_recipes_that_exist(path: Path) -> None:
    (job,) = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    matrix = job.get("strategy", {}).get("matrix", {})
    commands = [step["run"] for step in job["steps"] if "run" in step]
    for name, values in matrix.items():
        commands = [
            command.replace(f"${{{{ matrix.{name} }}}}", str(value)) for command in commands for value in values
        ]
    assert commands

    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    for command in commands:
        words = command.split()
        if words[0] == "make":
            assert words[1] in targets, command
        if "--config" in words:
            assert (ROOT / "recipes" / f"{words[words.index('--config') + 1]}.yaml").is_file(), command


def test_each_supported_python_is_tested(setup: ConfigParser) -> None:
    jobs = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"]
    tested = jobs["tests"]["strategy"]["matrix"]["python"]
    assert tested == pythons(setup)
    assert setup["options"]["python_requires"] == f">={tested[0]}"


def test_the_table_of_versions_agrees_with_the_requirements(setup: ConfigParser) -> None:
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in read("docs/compatibility.md").splitlines()
    ]
    table: dict[str, Any] = {row[0]: row[1:] for row in rows if row}

    bounds = dict(re.findall(r"^([\w-]+)(>=.*)$", setup["options"]["install_requires"], re.MULTILINE))
    version = ".".join(read("trl_rec/version.py").split('"')[-2].split(".")[:2])
    assert table[version] == [", ".join(pythons(setup)), *(bounds[name] for name in LIBRARIES)]

    pinned = dict(re.findall(r"^(\w+)==(.*)$", read("constraints.txt"), re.MULTILINE))
    oldest = [bounds[name].removeprefix(">=").partition(",")[0] for name in LIBRARIES[1:]]
    assert table["make test"][:3] == [pinned[name] for name in LIBRARIES]
    assert table["make test-oldest"][:3] == [pinned["torch"], *oldest]


def test_the_citation_lists_the_papers_of_all_trainers() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    cited = {reference["url"].rpartition("/")[2]: reference["title"] for reference in citation["references"]}
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "trl_rec/trainer").rglob("*.py"))
    papers = re.findall(r'paper = Paper\(\s*"([^"]+)", "([^"]+)"', sources)
    assert len(papers) == 5
    assert all(cited[number] == title for title, number in papers)
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/methods").glob("*.md"))
    assert set(re.findall(r"^Paper:.*?arXiv (\d+\.\d+)", pages, re.MULTILINE)) <= cited.keys()


def test_the_citation_and_the_changelog_have_the_version_of_the_package() -> None:
    version = read("trl_rec/version.py").split('"')[-2]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == version
    assert f"## [{version}] - {citation['date-released']}" in read("CHANGELOG.md")


def test_a_bug_report_requires_the_environment() -> None:
    fields = {field.get("id"): field for field in yaml.safe_load(read(".github/ISSUE_TEMPLATE/bug.yml"))["body"]}
    assert "trl-rec env" in fields["env"]["attributes"]["label"]
    assert fields["env"]["validations"]["required"] is True
