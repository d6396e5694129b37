"""Evaluates a saved model, or lists made elsewhere, beside the baselines on the same rows.

Settings that the configuration leaves open are read from the run folder of the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from accelerate import PartialState

from trl_rec.data.dataset import RecDataset, at_most, spread
from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.priors import ArrayPrior, SavedPrior, fit_prior
from trl_rec.decoding.priors.fitted import AUTO, check_prior, given_strength
from trl_rec.decoding.priors.run_folder import KEY as PRIOR_KEY
from trl_rec.decoding.priors.run_folder import load_run_prior
from trl_rec.decoding.run_folder import check_same_items, settings_of_run
from trl_rec.evaluation.baselines import FittedBaseline
from trl_rec.evaluation.beam_gap import measure_beam_gap, write_beam_gaps
from trl_rec.evaluation.best_of_n import best_of_split
from trl_rec.evaluation.cost import say_cost
from trl_rec.evaluation.given_lists import read_lists
from trl_rec.evaluation.kept.files import METRICS
from trl_rec.evaluation.kept.finished_rows import FinishedRows, discard_finished
from trl_rec.evaluation.kept.writing import write_evaluation
from trl_rec.evaluation.policy import Policy, evaluate_policy, ranking_passes
from trl_rec.evaluation.prior_choice import PriorChoice, choose_prior, given_choice
from trl_rec.evaluation.prior_rows import evaluate_product
from trl_rec.evaluation.rankings import Rankings
from trl_rec.evaluation.results import (
    BASELINES,
    SEQUENCE,
    Evaluation,
    check_baselines,
    evaluate_baselines,
    evaluate_split,
    further_cutoff,
    held_out,
    recall_far_down,
)
from trl_rec.items.trie import TokenTrie
from trl_rec.models.loading import load_model, load_tokenizer
from trl_rec.ranges import COUNT, COUNT_FROM_0, FINITE, SEED, check_ranges


REMEDY = "set max_users to shorten it"
SAVED_PRIOR = "saved"  # the prior in the run folder of the model

# Values of the EvaluationConfig fields that are set neither by the user nor in the model's run folder.
DEFAULTS: dict[str, Any] = {
    "surface": "title",
    "list_length": None,
    "num_beams": None,
    "length_penalty": 0.0,
    "renormalize": True,
    "max_length": None,
}


@dataclass
class EvaluationConfig:
    """Configuration of an evaluation: which model and rows are evaluated, and how lists are generated.

    Fields in `DEFAULTS` that are not set are `None` until [`evaluation_settings`] fills them in from the model's run
    folder. A model from the hub has no run folder and gets the values of `DEFAULTS`, so set these fields to match the
    training of the model.

    Args:
        model (`str`, *optional*): A hub id, a folder or a GGUF file. If neither `model` nor `lists` is set, only the
            baselines are evaluated.
        baselines (`list[str]`, *optional*, defaults to `["random", "popularity", "transition"]`): The baselines to
            evaluate, in the order of the table. `"sequence"` adds a small sequence model, which is trained once and
            then kept in the cache folder, see [`SequenceBaseline`].
        lists (`str`, *optional*): A file of recommendations to evaluate instead of a model, see [`read_lists`].
        name (`str`, *optional*): Name of `lists` in the results. Defaults to `"lists "`, followed by the name of the
            file up to its first dot.
        surface (`str`, *optional*): How the model writes items: `"title"`, `"item_token"` or `"semantic_id"`.
        list_length (`int`, *optional*): Number of items in a list, for a model that writes lists.
        rewards (`dict`, *optional*): Weights of the rewards that score whole lists, as in [`score_lists`].
        best_of (`int`, *optional*): If set, also draws this number of lists per user and evaluates the list with the
            highest reward. The result is an upper bound for a policy that is aligned to the static Best-of-N target.
            Requires `rewards` and `list_length`.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` or `"test"`.
        max_users (`int`, *optional*): Maximum number of rows of the split to evaluate, spread evenly over the split.
            Defaults to all rows.
        ks (`list[int]`, *optional*, defaults to `[1, 5, 10]`): The cutoffs k of the metrics.
        recall_at (`int`, *optional*, defaults to `50`): A further cutoff, for recall alone. This recall needs a second
            pass over the users, with `recall_at` beams, unless every item is a single token or `num_beams` is at least
            `recall_at`. 0 leaves this recall out.
        exhaustive (`int`, *optional*): If set, also scores every item of the catalogue for this number of users, and
            compares the result with the beam search, as in [`measure_beam_gap`].
        exclude_history (`bool`, *optional*, defaults to `True`): Whether to exclude the items of a user's history.
        num_beams (`int`, *optional*): Number of beams. Defaults to the largest of `ks`, or to 1 for a model that
            writes lists.
        length_penalty (`float`, *optional*): Exponent p of the length penalty. Scores are divided by length ** p.
        renormalize (`bool`, *optional*): Whether the softmax is over legal tokens rather than over the vocabulary.
        batch_size (`int`, *optional*, defaults to `16`): Prompts per forward pass.
        max_length (`int`, *optional*): Maximum number of tokens of the prompt and the completion together.
        num_orders (`int`, *optional*): For a model of `trl-rec alro`, the number of orders in which each list of
            candidates is shown; 2 by default.
        dtype (`str`, *optional*, defaults to `"auto"`): Data type of the model's weights.
        prior (`str`, *optional*): A prior to multiply the model by: `"popularity"`, `"transition"`, `"mixture"`,
            `"saved"` (the prior in the model's run folder) or `"none"`. By default, the prior in the run folder is
            used, if there is one. With a prior, three recommenders are evaluated: the model alone, the prior alone,
            and the product of both.
        prior_strength (`str`, *optional*): Exponent of the prior, as a number. `"auto"` chooses the exponent on the
            validation split, as in [`choose_prior`]. By default, a saved prior keeps its saved setting, and the
            exponent of any other prior is chosen as with `"auto"`.
        seed (`int`, *optional*, defaults to `0`): Seed of the baselines `random` and `sequence`, of drawn lists and of
            the bootstrap.
    """

    model: str | None = field(
        default=None,
        metadata={"help": "hub id, folder or GGUF file of the model; if unset, only the baselines are evaluated"},
    )
    baselines: list[str] = field(
        default_factory=lambda: list(BASELINES),
        metadata={
            "help": "baselines to evaluate: random, popularity, transition, and sequence, which is trained first"
        },
    )
    lists: str | None = field(
        default=None,
        metadata={"help": "CSV, TSV or Parquet file of recommendations made elsewhere (user_id, rank, item_id)"},
    )
    name: str | None = field(
        default=None,
        metadata={"help": "name that the lists get in the results; if unset, made from the name of the file"},
    )
    surface: str | None = field(
        default=None,
        metadata={
            "help": "how the model writes items: title, item_token or semantic_id; if unset, from the run folder"
        },
    )
    list_length: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "number of items per list, for a model that writes lists; if unset, from the run folder",
        },
    )
    rewards: Annotated[dict[str, float] | None, FINITE] = field(
        default=None,
        metadata={
            "help": 'weights of rewards that score whole lists, as JSON: \'{"ndcg": 1, "mgu": 4}\'',
        },
    )
    best_of: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "also sample this many lists per user, and evaluate the list with the highest reward",
        },
    )
    split: str = field(default="test", metadata={"help": "split to evaluate: validation or test"})
    max_users: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={"help": "maximum number of users to evaluate, spread evenly over the split; all if unset"},
    )
    ks: Annotated[list[int], COUNT] = field(
        default_factory=lambda: [1, 5, 10], metadata={"help": "cutoffs k of the metrics, as in ndcg@k"}
    )
    recall_at: Annotated[int, COUNT_FROM_0] = field(
        default=50,
        metadata={
            "help": "further cutoff, for recall alone; needs a second pass with this many beams; 0 skips this recall",
        },
    )
    exhaustive: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "number of users for whom every item is scored, to measure what the beam search loses",
        },
    )
    exclude_history: bool = field(
        default=True, metadata={"help": "never recommend items that are in the user's history"}
    )
    num_beams: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "width of the beam search; if unset, from the run folder, or else the largest k (1 for lists)",
        },
    )
    length_penalty: Annotated[float | None, FINITE] = field(
        default=None,
        metadata={
            "help": "exponent p of the length penalty, which divides scores by (number of generated tokens) ** p; if "
            "unset, from the run folder, or else 0",
        },
    )
    renormalize: bool | None = field(
        default=None,
        metadata={
            "help": "softmax over legal tokens instead of the vocabulary; if unset, from the run folder, or else true"
        },
    )
    batch_size: Annotated[int, COUNT] = field(default=16, metadata={"help": "prompts per forward pass"})
    max_length: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "maximum number of tokens of prompt and completion together; if unset, from the run folder",
        },
    )
    num_orders: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={"help": "for a model of trl-rec alro: number of orders in which candidates are shown; 2 if unset"},
    )
    dtype: str = field(default="auto", metadata={"help": "dtype of the model's weights"})
    prior: str | None = field(
        default=None,
        metadata={
            "help": "prior to multiply the model by: popularity, transition, mixture, saved or none; if unset, from "
            "the run folder"
        },
    )
    prior_strength: str | None = field(
        default=None,
        metadata={
            "help": "exponent of the prior: a number, or auto, which chooses the exponent on the validation split; if "
            "unset, the saved setting of a saved prior, or else auto"
        },
    )
    seed: Annotated[int, SEED] = field(
        default=0,
        metadata={
            "help": "seed of the random baseline, of the baseline sequence, of sampled lists and of the bootstrap"
        },
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.ks:
            raise ValueError("ks is empty; give at least one k, such as 10")
        check_baselines(self.baselines)
        check_prior(self.prior, self.prior_strength or AUTO, others=(SAVED_PRIOR,))
        if self.prior not in (None, "none") and self.model is None:
            raise ValueError(
                f"prior={self.prior} multiplies a model, but model is not set; set model, or leave prior out (the "
                "baselines include popularity and transition)"
            )
        if self.lists is not None and self.model is not None:
            raise ValueError("model and lists are both set; evaluate them one after the other, into two folders")
        if self.name is not None and self.lists is None:
            raise ValueError("name has no effect without lists; leave it out, or set lists as well")
        if self.name in (*BASELINES, SEQUENCE):
            raise ValueError(f"name must not be {self.name!r}, which is the name of a baseline; choose another name")


def evaluation_settings(config: EvaluationConfig) -> EvaluationConfig:
    """Returns a copy of `config` with unset fields filled in from the model's run folder, or else from `DEFAULTS`.

    Raises `ValueError` if settings contradict each other.
    """
    of_run = settings_of_run(config.model)
    of_run["list_length"] = of_run.get("prompt", {}).get("list_length")
    unset = [name for name in DEFAULTS if getattr(config, name) is None]
    values: dict[str, Any] = {name: of_run.get(name, DEFAULTS[name]) for name in unset}
    values["prior"] = config.prior or (SAVED_PRIOR if of_run.get(PRIOR_KEY) is not None else "none")
    filled = replace(config, **values)

    if filled.list_length is not None and max(filled.ks) > filled.list_length:
        raise ValueError(f"ks={filled.ks} contains a k above list_length={filled.list_length}; lower that k")
    if filled.best_of is not None and (filled.rewards is None or filled.list_length is None):
        raise ValueError("best_of chooses lists by their rewards; set rewards and list_length as well")
    if filled.exhaustive is not None and (filled.model is None or filled.list_length is not None):
        raise ValueError(
            "exhaustive scores every item with a model that ranks single items; "
            + ("set model as well" if filled.model is None else "this model writes lists, so leave exhaustive out")
        )
    return filled


def evaluate_with_baselines(
    dataset: RecDataset,
    config: EvaluationConfig,
    *,
    keep: Callable[[PriorChoice], object] | None = None,
    recorded: Mapping[str, Any] | None = None,
    sequence: Callable[[RecDataset], FittedBaseline] | None = None,
    output: str | Path | None = None,
) -> dict[str, Evaluation]:
    """Evaluates the baselines, and the model or the lists of `config`. Users are divided among the processes.

    Args:
        dataset: The dataset, with any surface. The model writes items with the surface in `config`.
        config: The settings, as returned by [`evaluation_settings`].
        keep (`Callable`, *optional*): Function that is called on every process with the [`PriorChoice`], before the
            prior is evaluated on `config.split`. The function can save the choice, or raise an error to stop the
            evaluation. It is not called for a saved prior with its saved setting.
        recorded (*optional*): The choice that the output folder contains, as in [`given_choice`].
        sequence (`Callable`, *optional*): Function that trains the baseline `"sequence"` on the dataset, such as
            `SequenceBaseline().fit`. Required if `config.baselines` contains it.
        output (*optional*): The output folder. If it is given, finished rows are kept there, so that an interrupted
            evaluation can be resumed, until [`write_results`] has written the results.

    Returns:
        The evaluation of each recommender by name.
    """
    if SEQUENCE in config.baselines and sequence is None:
        raise ValueError(
            "the baseline sequence has to be trained; pass sequence=SequenceBaseline().fit, or leave it out of "
            "baselines"
        )

    # 1. Set the surface, and check that the model was trained on these items. Without a model, the surface is
    #    `item_token`, so that the baselines exclude only the items of a history, as in published results. With titles,
    #    they would also exclude all other items with the title of a history item.
    if config.model is not None:
        dataset = dataset.with_surface(config.surface or DEFAULTS["surface"])
        check_same_items(config.model, dataset.catalog, dataset.path)
    else:
        dataset = dataset.with_surface("item_token")

    # 2. Load the prior and the policy, and choose the setting of the prior on the validation split.
    prior = None if config.model is None else _load_prior(config.model, dataset, config)
    policy = None if config.model is None else _load_policy(config.model, dataset, config)
    if policy is not None and prior is not None and not _keeps_saved_setting(config):
        prior, choice = _choose_setting(policy, prior, dataset, config, recorded)
        if keep is not None:
            keep(choice)

    # 3. Read the lists, train the baseline that has to be trained, and select the rows to evaluate. The baseline needs
    #    the whole validation split, so it is trained before the selection.
    lists = None if config.lists is None else _read_lists(config.lists, dataset, config)
    trained = None if sequence is None or SEQUENCE not in config.baselines else sequence(dataset)
    rows = at_most(config.max_users, held_out(dataset, config.split))
    dataset = replace(dataset, **{config.split: rows})  # the fields of the dataset are named after the splits

    # 4. Evaluate the baselines, then the model or the lists.
    if policy is not None and output is not None:
        policy = replace(policy, finished=FinishedRows.of_model(output, policy.model))
    results = evaluate_baselines(
        dataset,
        exclude_history=config.exclude_history,
        baselines=config.baselines,
        sequence=trained,
        **_measuring(config),
    )
    name = recommender_name(config)
    if policy is not None and config.model is not None:
        results |= _evaluate_model(policy, prior, model_row(config.model), dataset, config)
    elif lists is not None and name is not None:
        results[name] = _evaluate_lists(lists, dataset, config)
    return results


def wanted_choice(config: EvaluationConfig) -> tuple[str, float | None] | None:
    """Returns the kind and the strength of the prior whose setting [`evaluate_with_baselines`] will pass to `keep`.

    The strength is None if it will be chosen on the validation split. The result is None if `keep` will not be called:
    if there is no prior, or if a saved prior keeps its saved setting. With this result, `check_choice` can refuse an
    output folder before the model is loaded.

    Args:
        config: The settings, as returned by [`evaluation_settings`].
    """
    if config.prior in (None, "none") or _keeps_saved_setting(config):
        return None
    strength = given_strength(config.prior_strength or AUTO)
    if config.prior != SAVED_PRIOR:
        return config.prior, strength

    described = settings_of_run(config.model).get(PRIOR_KEY)
    kind = described.get("kind") if isinstance(described, dict) else None
    if kind is None or (kind == ArrayPrior.kind and strength is None):
        return None  # `_load_prior` will raise an error
    return str(kind), strength


def _keeps_saved_setting(config: EvaluationConfig) -> bool:
    return config.prior == SAVED_PRIOR and config.prior_strength is None


def _read_lists(path: str, dataset: RecDataset, config: EvaluationConfig) -> Rankings:
    """Reads lists for the rows to evaluate, up to the largest cutoff that a metric needs."""
    return read_lists(
        path,
        dataset,
        split=config.split,
        rows=spread(config.max_users, len(held_out(dataset, config.split))),
        top_k=max(config.ks),
        at_most=further_cutoff(config.recall_at, config.ks, len(dataset.catalog)),
        exclude_history=config.exclude_history,
    )


def _evaluate_lists(lists: Rankings, dataset: RecDataset, config: EvaluationConfig) -> Evaluation:
    """Evaluates lists made elsewhere. Recall at `recall_at` is left out if no list is long enough."""
    measuring = _measuring(config)
    further = further_cutoff(measuring.pop("recall_at"), config.ks, len(dataset.catalog))
    evaluation = evaluate_split(lists.head(max(config.ks)), dataset, **measuring)
    if further is None or lists.items.shape[1] < further:
        return evaluation
    return evaluation.with_values(recall_far_down(lists, held_out(dataset, config.split), further), seed=config.seed)


def write_results(
    folder: str | Path, results: Mapping[str, Evaluation], dataset: RecDataset, config: EvaluationConfig
) -> None:
    """Writes the results of [`evaluate_with_baselines`] to a folder, as described in [`write_evaluation`] and
    [`write_beam_gaps`].

    Args:
        folder: The folder. It is created if necessary.
        results: The evaluation of each recommender by name.
        dataset: The dataset that was passed to [`evaluate_with_baselines`].
        config: The settings that were passed to [`evaluate_with_baselines`].
    """
    write_evaluation(
        folder,
        results,
        dataset=dataset,
        split=config.split,
        ks=config.ks,
        exclude_history=config.exclude_history,
        settings=vars(config),
        recommender=recommender_name(config),
        seed=seed_of_run(config.model),
        rows=spread(config.max_users, len(held_out(dataset, config.split))),
    )
    write_beam_gaps(folder, results)
    discard_finished(folder)


def recommender_name(config: EvaluationConfig) -> str | None:
    """Returns the name of the model or of the lists in the results, or None if there are only baselines."""
    if config.model is not None:
        return model_row(config.model)
    if config.lists is not None:
        return config.name or f"lists {Path(config.lists).name.split('.')[0]}"
    return None


def model_row(model: str) -> str:
    """Returns the name of a model in the results."""
    return f"model {Path(model).name}"


def seed_of_run(model: str | None) -> int | None:
    """Returns the seed that the model in a run folder was trained with, or None if it is unknown."""
    path = Path(model or "") / METRICS
    if model is None or not path.is_file():
        return None
    try:
        seed = json.loads(path.read_text(encoding="utf-8"))["seed"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return seed if isinstance(seed, int) else None


def _load_policy(model_name: str, dataset: RecDataset, config: EvaluationConfig) -> Policy:
    """Loads the model and its tokenizer."""
    tokenizer = load_tokenizer(model_name)
    model = load_model(model_name, dtype=config.dtype).to(PartialState().device)
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


def _load_prior(model_name: str, dataset: RecDataset, config: EvaluationConfig) -> SavedPrior | None:
    """Loads or fits the prior, or returns None if no prior is used.

    Raises `ValueError` if the setting of a prior is to be chosen that has none.
    """
    if config.prior in (None, "none"):
        return None
    if config.prior != SAVED_PRIOR:
        return fit_prior(config.prior, dataset, exclude_history=config.exclude_history)

    saved = load_run_prior(model_name, settings_of_run(model_name), len(dataset.catalog))
    if saved is None:
        raise ValueError(f"{model_name} does not contain a prior; choose another prior, or leave prior out")
    if isinstance(saved, ArrayPrior) and config.prior_strength == AUTO:
        raise ValueError(
            f"prior_strength=auto chooses the strength of counts, but the prior in {model_name} is an array of "
            "weights; give prior_strength a number, or leave it out"
        )
    return saved


def _choose_setting(
    policy: Policy,
    prior: SavedPrior,
    dataset: RecDataset,
    config: EvaluationConfig,
    recorded: Mapping[str, Any] | None,
) -> tuple[SavedPrior, PriorChoice]:
    """Gives the prior the strength in `config`, or the setting that is best on the validation split."""
    strength = given_strength(config.prior_strength or AUTO)
    k = max(config.ks)
    if strength is not None:
        return given_choice(prior, strength, k, recorded=recorded)
    assert not isinstance(prior, ArrayPrior), "refused by `_load_prior`"
    return choose_prior(policy, dataset, prior, k=k, max_users=config.max_users)


def _evaluate_model(
    policy: Policy, prior: SavedPrior | None, name: str, dataset: RecDataset, config: EvaluationConfig
) -> dict[str, Evaluation]:
    """Evaluates the model. Also evaluates the prior and the product if there is a prior, and drawn lists if `best_of`
    is set."""
    # 1. Say how long it takes, and evaluate the policy.
    rows = held_out(dataset, config.split)
    passes = ranking_passes(policy, config.ks, config.recall_at, len(dataset.catalog))
    num_rankings = 1 if prior is None else 2
    seconds = num_rankings * len(rows) * sum(policy.seconds_per_user(rows, passes))
    say_cost(len(rows), seconds, name="evaluation", remedy=REMEDY)
    evaluation = evaluate_policy(policy, dataset, **_measuring(config))
    if config.exhaustive is not None:
        gap = measure_beam_gap(
            policy, dataset, num_users=config.exhaustive, split=config.split, k=max(config.ks), seed=config.seed
        )
        evaluation = replace(evaluation, beam_gap=gap)
    results = {name: evaluation}

    # 2. Evaluate the prior alone, and its product with the policy.
    if prior is not None:
        results |= evaluate_product(policy, prior, dataset, name, **_measuring(config))

    # 3. Evaluate a single drawn list, and the best of N.
    if config.best_of is not None and config.model is not None:
        drawn = best_of_split(
            policy.model,
            load_tokenizer(config.model),
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
    return results


def _measuring(config: EvaluationConfig) -> dict[str, Any]:
    """Returns the arguments shared by [`evaluate_baselines`] and [`evaluate_policy`]."""
    return {
        "split": config.split,
        "ks": config.ks,
        "recall_at": config.recall_at,
        "rewards": config.rewards,
        "seed": config.seed,
    }
