"""Configuration of [`BladeTrainer`]: `DPOConfig` with the options of lists, rewards and the moving target."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from transformers.trainer_utils import SaveStrategy
from trl import DPOConfig

from trl_rec.compat import dict_fields
from trl_rec.ranges import COUNT, COUNT_FROM_0, FINITE, NOT_NEGATIVE, POSITIVE, SHARE, Range
from trl_rec.trainer.base.config import INERT_DPO, INERT_DPO_ROWS, RecConfig, check_inert, check_padding


INERT_REFERENCE = (
    "precompute_ref_log_probs",
    "precompute_ref_batch_size",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
)
TARGETS = {"blade": "BLADE", "best_of_n": "static Best-of-N", "rank": "rank in the group", "reward": "GRPO"}


@dataclass
class BladeConfig(RecConfig, DPOConfig):
    """Arguments of [`BladeTrainer`], besides those of [`RecConfig`] and [`~trl.DPOConfig`].

    A batch contains prompts, and the policy draws `num_generations` lists for each. Items that are excluded when lists
    are ranked (`eval_exclude_history`) are excluded from the drawn lists as well.

    Args:
        list_length (`int`, *optional*, defaults to `10`): Items per list, the paper's K.
        rewards (`dict[str, float]`, *optional*, defaults to `{"ndcg": 1.0}`): Weights of rewards by name: those
            of [`~trl_rec.evaluation.rewards.REWARDS`], such as `ndcg` and `mgu`, or functions passed to the trainer.
            All are higher for better lists.
        target (`str`, *optional*, defaults to `"blade"`): What the policy learns from: `"blade"`; `"best_of_n"`,
            its static limit; `"rank"`, the rank among the rollouts alone; or the `"reward"` itself, as GRPO does.
        dynamic_coefficient (`float`, *optional*, defaults to `0.3`): The rollouts' share of the evidence, the paper's
            tau, with `target="blade"`.
        best_of (`float`, *optional*, defaults to `8`): The N of Best-of-N.
        num_references (`int`, *optional*, defaults to `16`): Lists of the reference policy per prompt, drawn once.
        prior (`float`, *optional*, defaults to `0.5`): Parameter of the Beta prior.
        num_generations (`int`, *optional*, defaults to `8`): Rollouts per prompt and step, at least 2.
        temperature (`float`, *optional*, defaults to `1.0`): Temperature of rollouts and references.
        beta (`float`, *optional*): Weight of the KL to the reference policy. By default 1, as the target
            already contains N; 0.001 with `target="reward"`.
        standardize (`bool`, *optional*): Whether advantages are divided by their group's standard deviation. By
            default only with `target="reward"`.
        num_iterations (`int`, *optional*, defaults to `1`): Steps on the same rollouts.
        clip (`float`, *optional*, defaults to `0.2`): Distance from 1 at which a list's probability ratio is clipped.
        every_position (`bool`, *optional*, defaults to `False`): Whether a list begins at every item of a sequence,
            instead of where the list before it ends.
        max_prompts (`int`, *optional*): Most prompts to learn from, spread evenly over the users; by default all. Each
            costs `num_references` lists before training begins, so a short run should not have more than it visits.
        reference_batch_size (`int`, *optional*, defaults to `64`): Prompts whose reference lists are drawn together.
        learning_rate (`float`, *optional*, defaults to `1e-5`): Initial learning rate. The default of `DPOConfig` is
            `1e-6`.
    """

    may_change = (*RecConfig.may_change, "reference_batch_size")

    list_length: Annotated[int | None, COUNT] = field(default=10, metadata={"help": "items per list"})
    rewards: Annotated[dict[str, Any] | str | None, FINITE] = field(
        default=None, metadata={"help": "weights of rewards by name; ndcg by default"}
    )
    target: Literal["blade", "best_of_n", "rank", "reward"] = field(
        default="blade", metadata={"help": "blade, best_of_n, rank or reward"}
    )
    dynamic_coefficient: Annotated[float, SHARE] = field(
        default=0.3, metadata={"help": "the rollouts' share of the evidence"}
    )
    best_of: Annotated[float, Range(1)] = field(default=8, metadata={"help": "N of Best-of-N"})
    num_references: Annotated[int, COUNT_FROM_0] = field(
        default=16, metadata={"help": "lists of the reference policy per prompt"}
    )
    prior: Annotated[float, POSITIVE] = field(default=0.5, metadata={"help": "parameter of the Beta prior"})
    num_generations: Annotated[int, replace(COUNT, low=2, hint="rollouts are compared with each other")] = field(
        default=8,
        metadata={
            "help": "rollouts per prompt and step",
        },
    )
    temperature: Annotated[float, POSITIVE] = field(
        default=1.0, metadata={"help": "temperature of rollouts and references"}
    )
    beta: Annotated[float | None, NOT_NEGATIVE] = field(  # type: ignore[assignment]  # a float once the target is known
        default=None,
        metadata={"help": "weight of the KL; 1 by default, 0.001 with target reward"},
    )
    standardize: bool | None = field(default=None, metadata={"help": "divide advantages by their group's deviation"})
    num_iterations: Annotated[int, COUNT] = field(default=1, metadata={"help": "steps on the same rollouts"})
    clip: Annotated[float, POSITIVE] = field(
        default=0.2,
        metadata={"help": "distance from 1 at which a list's probability ratio is clipped"},
    )
    every_position: bool = field(default=False, metadata={"help": "begin a list at every item of a sequence"})
    max_prompts: Annotated[int | None, COUNT] = field(
        default=None, metadata={"help": "most prompts to learn from, spread evenly over the users"}
    )
    reference_batch_size: Annotated[int, COUNT] = field(
        default=64, metadata={"help": "prompts whose reference lists are drawn together"}
    )

    learning_rate: Annotated[float, NOT_NEGATIVE] = field(default=1e-5, metadata={"help": "initial learning rate"})

    _VALID_DICT_FIELDS = dict_fields(DPOConfig, "rewards")

    def __post_init__(self) -> None:
        padding = self.pad_to_multiple_of
        super().__post_init__()
        check_padding(self, padding)

        # 1. Options of DPOTrainer that would silently do nothing.
        check_inert(self, INERT_DPO, "the loss is a policy gradient of whole lists")
        check_inert(
            self, INERT_DPO_ROWS, "rows are packed without padding, and only a prompt is ever cut, at its beginning"
        )
        check_inert(self, INERT_REFERENCE, "rollouts are drawn anew, and the reference policy never changes")
        check_inert(self, ("disable_dropout",), "dropout is always off, for rollouts and for their gradient")

        # 2. Defaults that depend on the target.
        self.rewards = {"ndcg": 1.0} if self.rewards is None else self.rewards
        self.beta = (1e-3 if self.target == "reward" else 1.0) if self.beta is None else self.beta
        self.standardize = self.target == "reward" if self.standardize is None else self.standardize

        # 3. Values that would otherwise be refused in the first step only, after the reference lists were drawn.
        self._check_sampling()
        self._check_iterations()

    @property
    def rollout_share(self) -> float:
        """The dynamic coefficient of the target: 0 for the static one, 1 for rank and reward."""
        return {"blade": self.dynamic_coefficient, "best_of_n": 0.0}.get(self.target, 1.0)

    @property
    def reward_weights(self) -> dict[str, float]:
        """The weights of the rewards, by name."""
        return self.rewards if isinstance(self.rewards, dict) else {}

    @property
    def num_list_items(self) -> int:
        """`list_length` as a plain number, which it always is here."""
        return self.list_length or 1

    def _check_sampling(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, not {self.target!r}")
        if not isinstance(self.rewards, dict) or not self.rewards:
            raise ValueError(
                f"rewards must map names to weights, as in {{'ndcg': 1.0, 'mgu': 4.0}}, not {self.rewards!r}"
            )
        if self.list_length is None:
            raise ValueError("list_length is missing, and BLADE aligns lists; give the number of items per list")
        least = 1 if self.target in ("blade", "best_of_n") else 0
        if self.num_references < least:
            raise ValueError(
                f"num_references must be at least {least}, not {self.num_references}, with target {self.target}"
            )

    def _check_iterations(self) -> None:
        """Refuses checkpoints between the steps on the same rollouts: they could not be resumed to equal weights."""
        if self.num_iterations == 1:
            return
        check_inert(self, ("train_sampling_strategy",), "batches come num_iterations times in a row")

        # Checkpoints are written every so many steps, and at the last step.
        every = {"steps": self.save_steps, "best": self.eval_steps}.get(SaveStrategy(self.save_strategy).value) or 0
        last = self.max_steps if every and self.max_steps > 0 else 0
        between = next((step for step in (every, last) if step % self.num_iterations), None)
        if between is not None:
            raise ValueError(
                f"num_iterations is {self.num_iterations}, and a checkpoint would be written at step {between:g}, "
                "between two steps on the same rollouts; make save_steps and max_steps multiples of num_iterations"
            )
