"""`trl-rec evaluate`: the baselines and, if one is given, a model, ranked and measured in the same way on the same
rows.

Under `accelerate launch -m trl_rec.scripts.evaluate` the users are divided over the processes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from trl_rec.data import PromptFormat, RecDataset, load
from trl_rec.data.dataset import at_most
from trl_rec.decoding.run_folder import check_same_items, settings_of_run
from trl_rec.evaluation import (
    Evaluation,
    best_of_split,
    evaluate_baselines,
    evaluate_split,
    metrics_table,
    rank_split,
    write_metrics,
)
from trl_rec.evaluation.results import held_out
from trl_rec.scripts.parsing import parse, run


# Used where neither the command nor the model's run folder says otherwise.
DEFAULTS = {
    "surface": "title",
    "list_length": None,
    "num_beams": None,
    "length_penalty": 0.0,
    "renormalize": True,
    "max_length": None,
}


@dataclass
class EvaluateArguments:
    """Keys of an `evaluate` recipe. What is not given of how items are written and ranked is as the model's run folder
    says; for a hub id, which is not looked into, it has to be given."""

    dataset: str = field(metadata={"help": "dataset folder"})
    output_dir: str = field(metadata={"help": "where metrics.json goes"})
    model: str | None = field(
        default=None, metadata={"help": "model: hub id, folder or GGUF file; none: baselines alone"}
    )
    surface: str | None = field(
        default=None,
        metadata={"help": "how the model writes items: title, item_token, semantic_id; else as its run, or title"},
    )
    list_length: int | None = field(
        default=None, metadata={"help": "items of a list that the model writes; else as its run folder says"}
    )
    rewards: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'weights of rewards of whole lists, as in \'{"ndcg": 1, "mgu": 4}\''}
    )
    best_of: int | None = field(
        default=None, metadata={"help": "also draw so many lists a user and keep the best by the rewards: a ceiling"}
    )
    split: str = field(default="test", metadata={"help": "validation or test"})
    max_users: int | None = field(
        default=None, metadata={"help": "rows of the split to measure, spread evenly; else all"}
    )
    ks: list[int] = field(default_factory=lambda: [1, 5, 10], metadata={"help": "lengths to cut the lists at"})
    exclude_history: bool = field(default=True, metadata={"help": "never recommend what the user's history holds"})
    num_beams: int | None = field(
        default=None, metadata={"help": "beam width; else as its run, or the largest of ks, of lists 1"}
    )
    length_penalty: float | None = field(
        default=None, metadata={"help": "divide scores by length to this power; else as its run, or 0"}
    )
    renormalize: bool | None = field(
        default=None,
        metadata={"help": "softmax over legal tokens rather than the vocabulary; else as its run, or true"},
    )
    batch_size: int = field(default=16, metadata={"help": "prompts a forward pass"})
    max_length: int | None = field(
        default=None, metadata={"help": "most tokens of prompt and item, or list; else as its run"}
    )
    dtype: str = field(default="auto", metadata={"help": "the model's number format"})
    seed: int = field(default=0, metadata={"help": "seed of the random baseline and the bootstrap"})


def main(argv: list[str]) -> None:
    """Evaluates, prints the table and writes `metrics.json`."""
    arguments = parse(EvaluateArguments, argv, "evaluate")
    prompt = _complete(arguments)
    if arguments.list_length is not None and max(arguments.ks) > arguments.list_length:
        raise ValueError(f"ks={arguments.ks} goes beyond list_length={arguments.list_length}; lower ks")
    if isinstance(arguments.rewards, str):
        arguments.rewards = json.loads(arguments.rewards)
    if arguments.best_of is not None and (arguments.rewards is None or arguments.list_length is None):
        raise ValueError("the best of several lists is chosen by rewards, of lists; give rewards and list_length")
    dataset, measured = load(arguments.dataset), {"split": arguments.split, "ks": arguments.ks}
    if arguments.model is not None:
        dataset = dataset.with_surface(arguments.surface)
        check_same_items(arguments.model, dataset.catalog, arguments.dataset)
    few = at_most(arguments.max_users, held_out(dataset, arguments.split))
    dataset = replace(dataset, **{arguments.split: few})
    options = {"rewards": arguments.rewards, "seed": arguments.seed, **measured}
    results = evaluate_baselines(dataset, exclude_history=arguments.exclude_history, **options)
    if arguments.model is not None:
        results |= _evaluate_model(arguments, dataset, prompt)
    if PartialState().is_main_process:
        path = Path(arguments.output_dir) / "metrics.json"
        write_metrics(path, results, exclude_history=arguments.exclude_history, settings=asdict(arguments), **measured)
        history = "excluded" if arguments.exclude_history else "not excluded"
        print(metrics_table(results, caption=f"{arguments.dataset}, {arguments.split} split, history {history}"))
        print(f"\nwritten to {path}")


def _complete(arguments: EvaluateArguments) -> dict[str, Any]:
    """How the model is prompted; what the command leaves open is filled in as its run folder says."""
    of_run = settings_of_run(arguments.model)
    prompt = of_run.get("prompt", {})
    told = {**DEFAULTS, **of_run, "list_length": prompt.get("list_length")}
    for name in DEFAULTS:
        if getattr(arguments, name) is None:
            setattr(arguments, name, told[name])
    return {**prompt, "list_length": arguments.list_length}


def _evaluate_model(
    arguments: EvaluateArguments, dataset: RecDataset, prompt: dict[str, Any]
) -> dict[str, Evaluation]:
    from trl_rec.models import load_model, load_tokenizer

    tokenizer = load_tokenizer(arguments.model)
    model = load_model(arguments.model, dtype=arguments.dtype).to(PartialState().device)
    shared = {name: getattr(arguments, name) for name in ("split", "exclude_history", "batch_size", "max_length")}
    ranking = {name: getattr(arguments, name) for name in ("num_beams", "renormalize", "length_penalty")}
    prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer, **prompt)
    ranked = rank_split(
        model, tokenizer, dataset, prompt_format=prompt_format, top_k=max(arguments.ks), **shared, **ranking
    )
    measured = {"split": arguments.split, "ks": arguments.ks, "rewards": arguments.rewards, "seed": arguments.seed}
    name = f"model {Path(str(arguments.model)).name}"
    results = {name: evaluate_split(ranked, dataset, **measured)}
    if arguments.best_of is not None:
        settings = {"best_of": arguments.best_of, "seed": arguments.seed, **shared}
        found = best_of_split(model, tokenizer, dataset, prompt_format, arguments.rewards, **settings)
        results |= {f"{name}, {what}": one for what, one in found.items()}
    return results


if __name__ == "__main__":
    run("evaluate", main, sys.argv[1:])
