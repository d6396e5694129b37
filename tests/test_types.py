"""Tests that users' type checkers see the types of trl_rec instead of `Any`: mypy accepts correct programs and reports
the mistakes in incorrect ones."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)

# `assert_type` fails if a value is `Any`; without it, an `Any` would pass every check unnoticed.
GOOD = """
from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import trl_rec
from trl_rec import (
    BearConfig,
    BearTrainer,
    Evaluation,
    ItemCatalog,
    RankedItems,
    RecDataset,
    Recommendation,
    Recommender,
    TokenTrie,
    evaluate_baselines,
    make_model,
    make_semantic_ids,
    make_tokenizer,
    prepare,
    rank_items,
)
from trl_rec.data import PromptFormat
from trl_rec.evaluation import metrics_table
from trl_rec.losses import LossOutput, bear_loss
from trl_rec.semantic_ids import read_ids_card
from trl_rec.trainer import AlroConfig, BladeConfig, SoftmaxDPOConfig


def train(folder: Path) -> BearTrainer:
    dataset = prepare("toy", folder, toy_users=40)
    assert_type(dataset, RecDataset)
    assert_type(dataset.with_surface("item_token").catalog, ItemCatalog)
    assert_type(dataset.catalog.titles, list[str])
    assert_type(make_semantic_ids(dataset, codes=32), RecDataset)
    if (card := read_ids_card(folder)) is not None:
        print(card["settings"])

    tokenizer = make_tokenizer(dataset.catalog)
    model = make_model(tokenizer, hidden_size=32)
    config = BearConfig("runs/bear", bear_weight=0.1, learning_rate=1e-3, eval_ks=[1, 5])
    assert_type(config.bear_weight, float)
    trainer = BearTrainer(model, config, dataset.train, processing_class=tokenizer, catalog=dataset.catalog)
    trainer.train(resume_from_checkpoint=True)
    return trainer


def recommend(model: PreTrainedModel, prompts: dict[str, Tensor], dataset: RecDataset) -> list[Recommendation]:
    trie = TokenTrie.from_sequences([[5, 6, 1], [8, 1]])
    ranked = rank_items(model, prompts, trie, num_beams=3, exclude=[[1]])
    assert_type(ranked, RankedItems)
    items, scores = ranked
    assert_type(items, Tensor)
    assert_type(trl_rec.evaluate_baselines(dataset), dict[str, Evaluation])
    print(metrics_table(evaluate_baselines(dataset, ks=(5, 10))))
    return Recommender.from_pretrained("runs/bear").recommend(dataset.history_of("3"), k=5)


assert_type(AlroConfig("a").learning_rate, float)
assert_type(BladeConfig("b").max_steps, int)
assert_type(SoftmaxDPOConfig("c").output_dir, str | None)
"""

# Maps each mistake to a program that makes it, and to the code of the error that mypy reports for the last line.
BAD = {
    "a name that does not exist": ("from trl_rec import Nothing", "attr-defined"),
    "a name that a subpackage does not have": ("from trl_rec.trainer import Nothing", "attr-defined"),
    "an attribute that the package does not have": ("import trl_rec\ntrl_rec.preprare", "attr-defined"),
    "an unknown field": ("from trl_rec import BearConfig\nBearConfig(bear_wait=1)", "call-arg"),
    "a field of the wrong type": ('from trl_rec import BearConfig\nBearConfig(bear_weight="x")', "arg-type"),
    "an inherited field of the wrong type": (
        'from trl_rec import BladeConfig\nBladeConfig(max_steps="x")',
        "arg-type",
    ),
    "arguments of the wrong type": ("from trl_rec import prepare\nprepare(3, 4)", "arg-type"),
    "an unknown argument": (
        "from trl_rec import TokenTrie, make_model, make_tokenizer, prepare, rank_items\n"
        'model = make_model(make_tokenizer(prepare("toy", "data").catalog))\n'
        "rank_items(model, {}, TokenTrie.from_sequences([[1]]), num_beam=3)",
        "call-arg",
    ),
    "a missing argument": ("from trl_rec import BearTrainer\nBearTrainer('model')", "call-arg"),
    "an attribute that a result does not have": (
        'from trl_rec import prepare\nprepare("toy", "data").catalogue',
        "attr-defined",
    ),
    "a method that a trainer does not have": (
        "from trl_rec import BearTrainer\ndef f(trainer: BearTrainer) -> None: trainer.rank_all()",
        "attr-defined",
    ),
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The errors that mypy finds in each program, by the name of the program. One run checks all programs, because
    mypy needs a long time to read torch and transformers."""
    folder = tmp_path_factory.mktemp("programs")
    programs = {"good": GOOD, **{f"readme_{number}": block for number, block in enumerate(BLOCKS)}}
    programs |= {f"bad_{number}": program for number, (program, _) in enumerate(BAD.values())}
    for name, program in programs.items():
        (folder / f"{name}.py").write_text(program)

    # mypy runs in the same directory and with the same settings as in `make lint`, so that it can reuse the cache of
    # `make lint`. This saves a minute.
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", *(str(folder / f"{name}.py") for name in programs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (0, 1) and not run.stderr, run.stdout + run.stderr
    found: dict[str, list[str]] = {name: [] for name in programs}
    for line in run.stdout.splitlines():
        if " error: " in line:
            # An error from the cache may name the folder of an earlier run of the tests, so only the file name counts.
            name = Path(line.split(".py:")[0]).name
            assert name in found, f"an error outside the programs: {line}"
            found[name].append(line)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["good", *(f"readme_{number}" for number in range(len(BLOCKS)))])
def test_programs_without_mistakes_pass(errors: dict[str, list[str]], name: str) -> None:
    assert errors[name] == []


@pytest.mark.slow
@pytest.mark.parametrize("mistake", BAD)
def test_mistakes_are_found(errors: dict[str, list[str]], mistake: str) -> None:
    program, code = BAD[mistake]
    found = errors[f"bad_{[*BAD].index(mistake)}"]
    last = len(program.splitlines())
    assert found and all(f".py:{last}: " in line and line.endswith(f"[{code}]") for line in found)


def test_the_package_declares_its_types() -> None:
    """Without `py.typed`, a type checker ignores the types of an installed package."""
    assert (ROOT / "trl_rec" / "py.typed").is_file()
    assert "trl_rec = py.typed" in (ROOT / "setup.cfg").read_text(encoding="utf-8")
