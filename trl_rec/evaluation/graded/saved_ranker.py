"""Evaluates a saved model that orders rated candidates (`trl-rec alro`), and baselines on the same candidates."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from accelerate import PartialState

from trl_rec.data.dataset import RecDataset, at_most, split_rows, spread
from trl_rec.decoding.candidates.ranker import SETTINGS, CandidateRanker
from trl_rec.decoding.run_folder import check_same_items, model_folder
from trl_rec.evaluation.cost import say_cost, seconds_per_user
from trl_rec.evaluation.graded.ranking import combine_orders, rank_rated_rows
from trl_rec.evaluation.graded.results import evaluate_orders, evaluate_rated_baselines
from trl_rec.evaluation.kept.finished_rows import FinishedRows, discard_finished
from trl_rec.evaluation.kept.writing import write_evaluation
from trl_rec.evaluation.results import BASELINES, Evaluation, held_out
from trl_rec.evaluation.saved_model.config import EvaluationConfig
from trl_rec.evaluation.saved_model.model import REMEDY
from trl_rec.evaluation.saved_model.writing import model_row, seed_of_run
from trl_rec.models.cpu import adapt_to_cpu
from trl_rec.trainer.alro.rows import held_out_rows


NUM_CANDIDATES = 10  # for run folders that do not record the number of candidates
NUM_ORDERS = 2  # default of the option `num_orders`
# Options of `trl-rec evaluate` that are None unless set, and have no effect on a model that orders rated candidates.
INERT = (
    "surface",
    "list_length",
    "rewards",
    "best_of",
    "exhaustive",
    "num_beams",
    "length_penalty",
    "renormalize",
    "max_length",
    "prior_strength",
)


def is_ranker(model: str | None) -> bool:
    """Returns whether `model` is a run folder of `trl-rec alro`, or a hub repository made from such a folder."""
    return model is not None and (Path(model_folder(model)) / SETTINGS).is_file()


def evaluate_ranker(dataset: RecDataset, config: EvaluationConfig, output: str | Path) -> dict[str, Evaluation]:
    """Evaluates the model of `config` and the baselines on the rated items of a split, and writes the results.

    Args:
        dataset: The dataset, which must have ratings.
        config: The settings. `config.model` must be a run folder of `trl-rec alro`, or a hub repository made from such
            a folder.
        output: Folder for the results, as described in [`write_evaluation`].

    Returns:
        The evaluation of each recommender by name.
    """
    # 1. Check the settings, load the model, and check that it was trained on the items of the dataset.
    assert config.model is not None and config.folder is not None
    for name in INERT:
        if getattr(config, name) is not None:
            raise ValueError(
                f"the option {name} has no effect on {config.model}, which orders rated candidates; leave the option "
                "out"
            )
    if config.baselines != list(BASELINES):
        raise ValueError(
            f"the option baselines has no effect on {config.model}, which orders rated candidates and has baselines "
            "of its own; leave the option out"
        )
    if config.prior not in (None, "none"):
        raise ValueError(
            f"the option prior has no effect on {config.model}, which orders rated candidates; leave the option out"
        )
    ranker = CandidateRanker.from_pretrained(config.model, dtype=config.dtype)
    dataset = dataset.with_surface(ranker.catalog.surface)
    check_same_items(config.folder, dataset.catalog, dataset.path)

    # 2. Order the candidates, and evaluate the orders and the baselines.
    settings = ranker.settings
    split = at_most(config.max_users, held_out(dataset, config.split))
    count = settings.get("num_candidates") or NUM_CANDIDATES
    rows = held_out_rows(split, num_candidates=count, max_history=settings["max_history"])
    model = ranker.model.to(PartialState().device)
    adapt_to_cpu(model)
    combined = config.combined_orders or 1
    num_orders = (config.num_orders or NUM_ORDERS) * combined
    rank = partial(
        rank_rated_rows,
        model,
        prompt_format=ranker.prompt_format,
        pad_token_id=ranker.tokenizer.pad_token_id,
        num_orders=num_orders,
        single_pass=settings["single_pass"],
        batch_size=config.batch_size,
        max_length=settings["max_length"],
    )
    (seconds,) = seconds_per_user(
        [lambda numbers: rank(rows.select(numbers))],
        split_rows(rows, "history").lengths,
        max(config.batch_size // num_orders, 1),
    )
    say_cost(len(rows), len(rows) * seconds, name="evaluation", remedy=REMEDY)
    lists = rank(rows, finished=FinishedRows.of_model(output, model))
    if combined > 1:
        lists = combine_orders(lists, combined)
    results = evaluate_rated_baselines(dataset.train, rows, len(dataset.catalog), ks=config.ks, seed=config.seed)
    name = model_row(config.model)
    results[name] = evaluate_orders(lists, rows, ks=config.ks, seed=config.seed)

    # 3. Write the results.
    if PartialState().is_main_process:
        write_evaluation(
            output,
            results,
            dataset=dataset,
            split=config.split,
            ks=config.ks,
            exclude_history=True,  # no candidate is in its user's history
            settings=vars(config),
            recommender=name,
            seed=seed_of_run(config.folder),
            rows=spread(config.max_users, len(held_out(dataset, config.split)))[rows.with_format("numpy")[:]["row"]],
            targets=split_rows(rows, "candidates"),
        )
        discard_finished(output)
    return results
