"""Loads a saved model, and evaluates the model alone, the model multiplied by a prior, and the best of several lists
drawn from the model."""

from __future__ import annotations

from dataclasses import replace

from accelerate import PartialState

from trl_rec.data.dataset import RecDataset
from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.priors import SavedPrior
from trl_rec.decoding.run_folder import settings_of_run
from trl_rec.evaluation.beam_gap import measure_beam_gap
from trl_rec.evaluation.best_of_n import best_of_split
from trl_rec.evaluation.cost import say_cost
from trl_rec.evaluation.policy import Policy, evaluate_policy, ranking_passes
from trl_rec.evaluation.prior_rows import evaluate_product
from trl_rec.evaluation.results import Evaluation, held_out
from trl_rec.evaluation.saved_model.config import EvaluationConfig
from trl_rec.evaluation.saved_model.settings import metric_options
from trl_rec.items.trie import TokenTrie
from trl_rec.models.cpu import adapt_to_cpu
from trl_rec.models.loading import load_model, load_tokenizer


REMEDY = "set max_users to shorten it"


def load_policy(model_name: str, dataset: RecDataset, config: EvaluationConfig) -> Policy:
    """Loads the model and its tokenizer. The model is prompted as in its training, if it has a run folder."""
    tokenizer = load_tokenizer(model_name)
    model = load_model(model_name, dtype=config.dtype).to(PartialState().device)
    adapt_to_cpu(model)
    prompt = {**settings_of_run(model_name).get("prompt", {}), "list_length": config.list_length}
    return Policy(
        model,
        PromptFormat.for_catalog(dataset.catalog, tokenizer, **prompt),
        TokenTrie.from_catalog(dataset.catalog, tokenizer, lists=config.list_length is not None),
        pad_token_id=tokenizer.pad_token_id,
        num_beams=config.num_beams,
        exclude_history=config.exclude_history,
        renormalize=config.renormalize is not False,
        length_penalty=config.length_penalty or 0.0,
        batch_size=config.batch_size,
        max_length=config.max_length,
    )


def evaluate_model(
    policy: Policy, prior: SavedPrior | None, name: str, dataset: RecDataset, config: EvaluationConfig
) -> dict[str, Evaluation]:
    """Evaluates the model, and returns the evaluations by name.

    If there is a prior, also evaluates the prior alone, and the product of the model and the prior. If `best_of` is
    set, also evaluates lists that the model draws.
    """
    # 1. Estimate the time for ranking, and evaluate the policy. With a prior, the product ranks all rows once more.
    rows = held_out(dataset, config.split)
    passes = ranking_passes(policy, config.ks, config.recall_at, len(dataset.catalog))
    num_rankings = 1 if prior is None else 2
    seconds = num_rankings * len(rows) * sum(policy.seconds_per_user(rows, passes))
    say_cost(len(rows), seconds, name="evaluation", remedy=REMEDY)
    evaluation = evaluate_policy(policy, dataset, **metric_options(config))
    if config.exhaustive is not None:
        gap = measure_beam_gap(
            policy, dataset, num_users=config.exhaustive, split=config.split, k=max(config.ks), seed=config.seed
        )
        evaluation = replace(evaluation, beam_gap=gap).with_values(gap.per_user, seed=config.seed)
    results = {name: evaluation}

    # 2. Evaluate the prior alone, and its product with the policy.
    if prior is not None:
        results |= evaluate_product(policy, prior, dataset, name, **metric_options(config))

    # 3. Draw `best_of` lists per user. Evaluate their mean ("drawn") and the best of them.
    if config.best_of is not None and config.folder is not None:
        drawn = best_of_split(
            policy.model,
            load_tokenizer(config.folder),
            dataset,
            policy.prompt_format,
            config.rewards or {},
            best_of=config.best_of,
            seed=config.seed,
            split=config.split,
            exclude_history=config.exclude_history,
            batch_size=config.batch_size,
            max_length=config.max_length,
            finished=policy.finished,
        )
        results |= {f"{name}, {kind}": evaluation for kind, evaluation in drawn.items()}
        # Copy the reward and NDCG of "drawn" to the model's own metrics, for comparisons between models.
        of_one = drawn["drawn"].per_user
        ndcg = next(metric for metric in of_one if metric.startswith("ndcg@"))
        values = {"drawn_reward": of_one["reward"], f"drawn_{ndcg}": of_one[ndcg]}
        results[name] = results[name].with_values(values, seed=config.seed)
    return results
