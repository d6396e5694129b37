"""An evaluation during training prints only the main metrics. The log contains all metrics."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import PrinterCallback, ProgressCallback

from tests.trainer.runs import make_folder, make_trainer
from trl_rec import load
from trl_rec.trainer.base.progress import ShortPrinter, ShortProgress, short_evaluation


ARGS = SimpleNamespace(eval_ks=[1, 5, 10], metric_for_best_model=None)


def shown(*names: str, best: str | None = None) -> list[str]:
    args = SimpleNamespace(eval_ks=ARGS.eval_ks, metric_for_best_model=best)
    return list(short_evaluation(dict.fromkeys(names, 0.5), args))


def test_metrics_at_the_largest_cutoff_are_shown() -> None:
    many = ["eval_loss", *(f"eval_{name}@{k}" for name in ("ndcg", "recall", "mrr", "gini") for k in ARGS.eval_ks)]
    assert shown(*many, "eval_runtime", "epoch") == ["eval_ndcg@10", "eval_recall@10", "epoch"]
    assert shown(*many, best="eval_mrr@5") == ["eval_ndcg@10", "eval_recall@10", "eval_mrr@5"]
    assert shown("eval_reward", "eval_reward/mgu", "eval_ndcg@10") == ["eval_reward", "eval_ndcg@10"]
    assert shown("eval_graded_ndcg@10", "eval_tau") == ["eval_graded_ndcg@10"]
    assert shown("eval_a_ndcg@10", "eval_a_gini@10", "eval_b_ndcg@10") == ["eval_a_ndcg@10", "eval_b_ndcg@10"]


def test_an_evaluation_without_rankings_shows_its_loss() -> None:
    assert shown("eval_loss", "eval_rewards/accuracies", "eval_runtime", "epoch") == [
        "eval_loss",
        "eval_rewards/accuracies",
        "epoch",
    ]


def test_other_lines_are_unchanged() -> None:
    assert shown("loss", "grad_norm", "bear/ce", "epoch") == ["loss", "grad_norm", "bear/ce", "epoch"]


def test_a_run_prints_the_short_line_and_keeps_all_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path)
    split = load(tmp_path / "data").validation
    trainer = make_trainer(tmp_path, tmp_path / "out", eval_dataset=split, eval_strategy="steps", eval_steps=2)
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "eval_" in line]
    assert len(lines) == 2 and all("eval_ndcg@10" in line and "gini" not in line for line in lines)
    assert "eval_gini@10" in trainer.state.log_history[-2]

    with_bar = make_trainer(tmp_path, tmp_path / "bar", disable_tqdm=False)
    kinds = {type(one) for one in with_bar.callback_handler.callbacks}
    assert ShortProgress in kinds and not {ProgressCallback, PrinterCallback, ShortPrinter} & kinds
