"""Runs verbs that replace the contents of a dataset folder. Tests call these functions directly, or in processes
started by `tests.processes`."""

from __future__ import annotations

from pathlib import Path

from trl_rec.data import load, prepare
from trl_rec.scripts import prepare as prepare_script
from trl_rec.scripts import tokenizing
from trl_rec.semantic_ids import make_semantic_ids


def make_start(output: Path) -> None:
    """Makes the folder that the verbs replace: a dataset with semantic IDs, made with other settings than the verbs
    use."""
    prepare("toy", output, toy_users=30, toy_items=50)
    make_semantic_ids(load(output), levels=2, codes=10)


def prepare_again(output: Path) -> None:
    words = "--source toy --toy_users 31 --toy_items 50 --overwrite true"
    prepare_script.main([*words.split(), "--output_dir", str(output)])


def tokenize_kmeans(output: Path) -> None:
    words = "--levels 2 --codes 8 --overwrite true"
    tokenizing.main([*words.split(), "--dataset", str(output)])


def tokenize_dual(output: Path) -> None:
    words = "--method dual --levels 2 --codes 8 --hidden 8 --fused_width 4 --code_width 4 --max_epochs 1"
    tokenizing.main([*words.split(), "--overwrite", "true", "--dataset", str(output)])
