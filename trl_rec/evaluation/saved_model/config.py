"""Defines `EvaluationConfig`, the configuration of `trl-rec evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from trl_rec.decoding.priors.fitted import AUTO, check_prior
from trl_rec.decoding.run_folder import model_folder
from trl_rec.evaluation.results import BASELINES, SEQUENCE, check_baselines
from trl_rec.ranges import COUNT, COUNT_FROM_0, FINITE, SEED, check_ranges


SAVED_PRIOR = "saved"  # the prior in the run folder of the model


@dataclass
class EvaluationConfig:
    """Configuration of an evaluation: which model and rows are evaluated, and how the model makes recommendations.

    If `surface`, `list_length`, `num_beams`, `length_penalty`, `renormalize`, `max_length` or `prior` is not set,
    [`evaluation_settings`] reads it from the model's run folder, or from the hub repository that the folder was pushed
    to. A model without a run folder gets the values in `settings.DEFAULTS` and no prior. For such a model, set these
    fields to the values that it was trained with.

    Args:
        model (`str`, *optional*): A hub id, a folder or a GGUF file. If neither `model` nor `lists` is set, only the
            baselines are evaluated.
        baselines (`list[str]`, *optional*, defaults to `["random", "popularity", "transition"]`): The baselines to
            evaluate, in the order in which results are shown. `"sequence"` adds a small sequence model, which is
            trained once and then kept in the cache folder, see [`SequenceBaseline`].
        lists (`str`, *optional*): A file of recommendations to evaluate instead of a model, see [`read_lists`].
        name (`str`, *optional*): Name of `lists` in the results. Defaults to `"lists "`, followed by the name of the
            file up to its first dot.
        surface (`str`, *optional*): How the model writes items: `"title"`, `"item_token"` or `"semantic_id"`.
        list_length (`int`, *optional*): Number of items in a list, for a model that writes lists.
        rewards (`dict`, *optional*): Weights of the rewards that score whole lists, as in [`score_lists`].
        best_of (`int`, *optional*): If set, also draws this number of lists per user, and evaluates both the list with
            the highest reward and the mean over all drawn lists. Requires `rewards` and `list_length`. BLADE can train
            the model to imitate this choice of the best list: in [`BladeConfig`], set `target="best_of_n"`, the same
            `rewards` and `best_of`, and leave `beta` at its default.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` or `"test"`.
        max_users (`int`, *optional*): Maximum number of rows of the split to evaluate, spread evenly over the split.
            Defaults to all rows. The maximum also applies to the validation rows used to choose a prior's exponent.
        ks (`list[int]`, *optional*, defaults to `[1, 5, 10]`): The cutoffs k of the metrics.
        recall_at (`int`, *optional*, defaults to `50`): A further cutoff, for recall alone. This recall needs a second
            pass over the users, with `recall_at` beams, unless every item is a single token or `num_beams` is at least
            `recall_at`. 0 leaves this recall out.
        exhaustive (`int`, *optional*): If set, also scores every item of the catalogue for this number of users, and
            compares the result with the beam search, as in [`measure_beam_gap`].
        exclude_history (`bool`, *optional*, defaults to `True`): Whether to exclude the items of a user's history.
        num_beams (`int`, *optional*): Number of beams. If neither this field nor the run folder sets it, it is the
            largest of `ks`, or 1 for a model that writes lists.
        length_penalty (`float`, *optional*): Exponent p of the length penalty. The log-probability of an item is
            divided by n ** p, where n is the number of tokens of the item.
        renormalize (`bool`, *optional*): Whether the softmax is over legal tokens rather than over the vocabulary.
        batch_size (`int`, *optional*, defaults to `16`): Prompts per forward pass.
        max_length (`int`, *optional*): Maximum number of tokens of the prompt and the completion together.
        num_orders (`int`, *optional*): For a model of `trl-rec alro`, the number of rankings that the model makes of
            each list of candidates. Each prompt has its own random order of the candidates. 2 by default.
        combined_orders (`int`, *optional*): For a model of `trl-rec alro`, the number of random prompt orders per
            ranking. With 5, the model ranks the list in five prompt orders, and Borda count combines the five results
            into one ranking. Each of the `num_orders` rankings then takes five times as long. 1 by default.
        dtype (`str`, *optional*, defaults to `"auto"`): Data type of the model's weights. `"auto"` is the type in
            which they were saved.
        prior (`str`, *optional*): A prior, whose item weights multiply the model's probabilities: `"popularity"`,
            `"transition"`, `"mixture"`, `"saved"` (the prior in the model's run folder) or `"none"`. By default, the
            prior in the run folder is used, if there is one. With a prior, three recommenders are evaluated: the model
            alone, the prior alone, and the product of both.
        prior_strength (`str`, *optional*): Exponent of the prior, as a number. `"auto"` chooses the exponent on the
            validation split, as in [`choose_prior`]. Some priors add eps times the popularity of an item to the item's
            weight. For these priors, `"auto"` chooses eps too. By default, a saved prior keeps its saved exponent and
            eps, and those of any other prior are chosen as with `"auto"`.
        seed (`int`, *optional*, defaults to `0`): Seed of the baselines `random` and `sequence`, of drawn lists and of
            the bootstrap.
    """

    model: str | None = field(
        default=None,
        metadata={
            "help": "hub id, folder or GGUF file of the model; if model and lists are unset, only the baselines are "
            "evaluated"
        },
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
        metadata={"help": "name of the lists in the results; if unset, 'lists' followed by the name of the file"},
    )
    surface: str | None = field(
        default=None,
        metadata={
            "help": "how the model writes items: title, item_token or semantic_id; if unset, read from the run folder"
        },
    )
    list_length: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "number of items per list, for a model that writes lists; if unset, read from the run folder",
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
            "help": "width of the beam search; if unset, read from the run folder, or else the largest k (1 for "
            "lists)",
        },
    )
    length_penalty: Annotated[float | None, FINITE] = field(
        default=None,
        metadata={
            "help": "exponent p of the length penalty, which divides scores by (number of generated tokens) ** p; if "
            "unset, read from the run folder, or else 0",
        },
    )
    renormalize: bool | None = field(
        default=None,
        metadata={
            "help": "softmax over legal tokens instead of the vocabulary; if unset, read from the run folder, or else "
            "true"
        },
    )
    batch_size: Annotated[int, COUNT] = field(default=16, metadata={"help": "prompts per forward pass"})
    max_length: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "maximum number of tokens of prompt and completion together; if unset, read from the run folder",
        },
    )
    num_orders: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={"help": "for a model of trl-rec alro: rankings per list, from different prompt orders; 2 if unset"},
    )
    combined_orders: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "for a model of trl-rec alro: prompt orders that are combined into each ranking; 1 if unset"
        },
    )
    dtype: str = field(
        default="auto", metadata={"help": "data type of the weights; auto is the type in which they were saved"}
    )
    prior: str | None = field(
        default=None,
        metadata={
            "help": "prior to multiply the model by: popularity, transition, mixture, saved or none; if unset, the "
            "prior in the run folder"
        },
    )
    prior_strength: str | None = field(
        default=None,
        metadata={
            "help": "exponent of the prior: a number, or auto, which chooses the exponent on the validation split; if "
            "unset, the saved exponent of a saved prior, or else auto"
        },
    )
    seed: Annotated[int, SEED] = field(
        default=0,
        metadata={"help": "seed of the baselines random and sequence, of sampled lists and of the bootstrap"},
    )

    @property
    def folder(self) -> str | None:
        """`model`, or its local copy if `model` is a hub repository that a run folder was pushed to."""
        return None if self.model is None else model_folder(self.model)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.ks:
            raise ValueError("ks is empty; give at least one k, such as 10")
        check_baselines(self.baselines)
        check_prior(self.prior, self.prior_strength or AUTO, others=(SAVED_PRIOR,))
        if self.prior not in (None, "none") and self.model is None:
            raise ValueError(
                f"prior={self.prior} multiplies a model's probabilities by item weights, but model is not set; set "
                "model, or leave prior out (the baselines include popularity and transition)"
            )
        if self.lists is not None and self.model is not None:
            raise ValueError("model and lists are both set; evaluate them one after the other, into two folders")
        if self.name is not None and self.lists is None:
            raise ValueError("name has no effect without lists; leave it out, or set lists as well")
        if self.name in (*BASELINES, SEQUENCE):
            raise ValueError(f"name must not be {self.name!r}, which is the name of a baseline; choose another name")
