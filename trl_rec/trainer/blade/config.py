"""Defines the configuration of [`BladeTrainer`], which adds options for lists and rewards to `DPOConfig`."""

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
NUM_ROLLOUTS = replace(COUNT, low=2, hint="the advantage of a rollout is relative to the other rollouts of its prompt")
TARGETS = {"blade": "BLADE", "best_of_n": "static Best-of-N", "rank": "rank in the group", "reward": "GRPO"}


@dataclass
class BladeConfig(RecConfig, DPOConfig):
    """Arguments of [`BladeTrainer`], besides those of [`RecConfig`] and [`~trl.DPOConfig`].

    A batch contains prompts, and the policy samples `num_generations` lists (rollouts) per prompt. With
    `eval_exclude_history`, items of the history are excluded from sampled lists as well as from evaluated lists.

    Args:
        list_length (`int`, *optional*, defaults to `10`): Number of items per list, the paper's K.
        rewards (`dict[str, float]`, *optional*, defaults to `{"ndcg": 1.0}`): Maps names of rewards to their
            weights. A name is a key of [`~trl_rec.evaluation.rewards.REWARDS`], such as `ndcg` or `mgu`, or the name
            of one of the `reward_functions`. Every reward must be higher for better lists. The reward `mgu` is
            therefore the negative of the metric MGU.
        reward_functions (`dict[str, str]`, *optional*): Maps names of further rewards to the import paths of their
            functions, such as `{"novelty": "my_module.novelty"}`. Each function takes a
            [`~trl_rec.evaluation.rewards.ListBatch`] and returns one finite number per list. The weight of each of
            these rewards is in `rewards`. The trainer's own argument `reward_functions` takes functions instead of
            import paths.
        target (`str`, *optional*, defaults to `"blade"`): The learning target, which is the quantity that the policy
            learns to maximise. `"blade"`, `"best_of_n"` and `"rank"` are Best-of-N rewards, which depend on how a
            list's reward ranks among the rewards of lists for the same prompt. `"blade"` estimates the rank from
            reference lists (see `num_references`) and rollouts, `"best_of_n"` from reference lists only, and `"rank"`
            from rollouts only. `"reward"` is the reward itself, as in GRPO.
        dynamic_coefficient (`float`, *optional*, defaults to `0.3`): Weight of the rollouts in the rank estimate with
            `target="blade"`, the paper's tau.
        best_of (`float`, *optional*, defaults to `8`): The N of Best-of-N (sampling N lists and keeping the best).
        num_references (`int`, *optional*, defaults to `16`): Number of reference lists per prompt. By default, they
            are sampled once, before training, from the reference policy (see also `reference_draws`). With
            `target="rank"` or `"reward"`, training uses these lists only for metrics, so the number may be 0.
        reference_draws (`int`, *optional*, defaults to `1`): Number of times that reference lists are drawn, evenly
            spaced over training. The first lists are drawn from the reference policy, and later ones from the policy
            that is being trained. With 4, for example, new lists are drawn after a quarter, a half and three quarters
            of the steps. The KL divergence (see `beta`) is always measured from the reference policy.
        prior (`float`, *optional*, defaults to `0.5`): Parameter a of the prior Beta(a, a) in the rank estimate.
        num_generations (`int`, *optional*, defaults to `8`): Number of rollouts per prompt and step, at least 2.
        temperature (`float`, *optional*, defaults to `1.0`): Sampling temperature of rollouts and reference lists.
        beta (`float`, *optional*): Weight of the KL divergence from the reference policy. Defaults to 0.001 with
            `target="reward"`, and to 1 otherwise. Suppose that the weight is 1, that `target="best_of_n"`, and that
            ranks are exact instead of estimated. Sampling from the optimal policy is then equivalent to sampling
            `best_of` lists from the reference policy and keeping the best one. If, in addition, all rewards differ,
            the divergence of the optimal policy from the reference policy depends only on `best_of`.
        standardize (`bool`, *optional*): Whether to divide the advantages of a prompt's rollouts by the standard
            deviation of the rollouts' values. The value of a rollout is its learning target minus its KL penalty.
            Defaults to `True` with `target="reward"`, and to `False` otherwise.
        num_iterations (`int`, *optional*, defaults to `1`): Number of optimizer steps per batch of rollouts.
        clip (`float`, *optional*, defaults to `0.2`): Clip range of the policy gradient. Probability ratios
            are clipped to [1 - clip, 1 + clip].
        every_position (`bool`, *optional*, defaults to `False`): Whether there is a training prompt before every
            target that the user chooses for the first time (a new item). By default, the prompts are `list_length` new
            items apart.
        max_prompts (`int`, *optional*): Maximum number of training prompts. They are evenly spaced among all prompts.
            By default, all prompts are used. `num_references` lists are sampled for each prompt before training, so a
            short run saves time if `max_prompts` is the number of prompts that it trains on.
        reference_batch_size (`int`, *optional*, defaults to `64`): Number of prompts per batch when reference lists
            are sampled.
        reference_dir (`str`, *optional*): Folder for the reference lists that are drawn from the reference policy.
            Runs that share this folder draw these lists only once if they have the same reference policy, prompts
            and sampling settings. Their options `rewards` and `target` may differ. Defaults to the run folder.
        learning_rate (`float`, *optional*, defaults to `1e-5`): Initial learning rate. The default of `DPOConfig` is
            `1e-6`.
    """

    may_change = (*RecConfig.may_change, "reference_batch_size", "reference_dir")

    list_length: Annotated[int | None, COUNT] = field(default=10, metadata={"help": "number of items per list"})
    rewards: Annotated[dict[str, Any] | str | None, FINITE] = field(
        default=None, metadata={"help": "mapping from names of rewards to their weights; by default, ndcg alone"}
    )
    reward_functions: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "further rewards: mapping from names to import paths of functions, such as "
            '\'{"novelty": "my_module.novelty"}\'; give their weights in rewards'
        },
    )
    target: Literal["blade", "best_of_n", "rank", "reward"] = field(
        default="blade", metadata={"help": "what the policy learns to maximise: blade, best_of_n, rank or reward"}
    )
    dynamic_coefficient: Annotated[float, SHARE] = field(
        default=0.3, metadata={"help": "with target=blade: weight of the rollouts in the rank estimate"}
    )
    best_of: Annotated[float, Range(1)] = field(
        default=8, metadata={"help": "N of Best-of-N: the number of lists from which the best one is chosen"}
    )
    num_references: Annotated[int, COUNT_FROM_0] = field(
        default=16, metadata={"help": "number of reference lists per prompt"}
    )
    reference_draws: Annotated[int, COUNT] = field(
        default=1,
        metadata={
            "help": "number of times that reference lists are drawn: first from the reference policy, then from the "
            "current policy"
        },
    )
    prior: Annotated[float, POSITIVE] = field(
        default=0.5, metadata={"help": "parameter a of the prior Beta(a, a) in the rank estimate"}
    )
    num_generations: Annotated[int, NUM_ROLLOUTS] = field(
        default=8,
        metadata={
            "help": "number of rollouts per prompt and step, at least 2",
        },
    )
    temperature: Annotated[float, POSITIVE] = field(
        default=1.0, metadata={"help": "sampling temperature of rollouts and reference lists"}
    )
    beta: Annotated[float | None, NOT_NEGATIVE] = field(  # type: ignore[assignment]  # a float once the target is known
        default=None,
        metadata={
            "help": "weight of the KL divergence from the reference policy; by default 1, or 0.001 with target=reward"
        },
    )
    standardize: bool | None = field(
        default=None,
        metadata={
            "help": "divide advantages by the standard deviation of the values (target minus KL penalty) of the "
            "prompt's rollouts; by default only with target=reward"
        },
    )
    num_iterations: Annotated[int, COUNT] = field(
        default=1, metadata={"help": "number of optimizer steps per batch of rollouts"}
    )
    clip: Annotated[float, POSITIVE] = field(
        default=0.2,
        metadata={"help": "clip range of the policy gradient: ratios are clipped to [1 - clip, 1 + clip]"},
    )
    every_position: bool = field(
        default=False,
        metadata={
            "help": "start a training list at every target that the user has not chosen before; by default, at every "
            "list_length-th of these targets"
        },
    )
    max_prompts: Annotated[int | None, COUNT] = field(
        default=None, metadata={"help": "maximum number of training prompts, evenly spaced among all prompts"}
    )
    reference_batch_size: Annotated[int, COUNT] = field(
        default=64, metadata={"help": "number of prompts per batch when reference lists are sampled"}
    )
    reference_dir: str | None = field(
        default=None,
        metadata={
            "help": "folder for the lists of the reference policy, which runs may share; by default, the run folder"
        },
    )

    learning_rate: Annotated[float, NOT_NEGATIVE] = field(default=1e-5, metadata={"help": "initial learning rate"})

    _VALID_DICT_FIELDS = dict_fields(DPOConfig, "rewards", "reward_functions")

    def __post_init__(self) -> None:
        padding = self.pad_to_multiple_of
        super().__post_init__()
        check_padding(self, padding)

        # 1. Refuse options of DPOTrainer that would silently have no effect.
        check_inert(self, INERT_DPO, "the loss is a policy gradient of whole lists")
        check_inert(
            self, INERT_DPO_ROWS, "the trainer packs its rows, and always cuts long prompts at their beginning"
        )
        check_inert(
            self,
            INERT_REFERENCE,
            "log-probabilities of new rollouts cannot be precomputed, and the reference policy never changes",
        )
        check_inert(self, ("disable_dropout",), "dropout is always off")

        # 2. Set defaults that depend on the target.
        self.rewards = {"ndcg": 1.0} if self.rewards is None else self.rewards
        self.beta = (1e-3 if self.target == "reward" else 1.0) if self.beta is None else self.beta
        self.standardize = self.target == "reward" if self.standardize is None else self.standardize

        # 3. Check values now, because the first step comes only after all reference lists are sampled.
        self._check_sampling()
        self._check_iterations()

    @property
    def rollout_share(self) -> float:
        """Weight of the rollouts in the rank estimate: `dynamic_coefficient` for the target `blade`, 0 for
        `best_of_n`, and 1 for the other targets."""
        return {"blade": self.dynamic_coefficient, "best_of_n": 0.0}.get(self.target, 1.0)

    @property
    def reward_weights(self) -> dict[str, float]:
        """Weights of the rewards by name."""
        return self.rewards if isinstance(self.rewards, dict) else {}

    @property
    def reward_paths(self) -> dict[str, str]:
        """Import paths of reward functions by name."""
        return self.reward_functions if isinstance(self.reward_functions, dict) else {}

    @property
    def num_list_items(self) -> int:
        """The value of `list_length` as an int. `__post_init__` raises an error if `list_length` is None."""
        return self.list_length or 1

    def _check_sampling(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, not {self.target!r}")
        if not isinstance(self.rewards, dict) or not self.rewards:
            raise ValueError(
                f"rewards must map names to weights, as in {{'ndcg': 1.0, 'mgu': 4.0}}, not {self.rewards!r}"
            )
        self._check_reward_functions(self.rewards)
        if self.list_length is None:
            raise ValueError(
                "list_length is None, but BLADE trains on lists; set list_length to the number of items per list"
            )
        least = 1 if self.target in ("blade", "best_of_n") else 0
        if self.num_references < least:
            raise ValueError(
                f"with target={self.target}, num_references must be at least {least}, not {self.num_references}"
            )
        if self.reference_draws > 1 and not least:
            raise ValueError(
                f"reference_draws={self.reference_draws} has no effect with target={self.target}, which "
                "learns without reference lists; leave it out"
            )

    def _check_reward_functions(self, weights: dict[str, Any]) -> None:
        functions = self.reward_functions
        if functions is None:
            return
        if not isinstance(functions, dict):
            raise ValueError(
                "reward_functions must map names to import paths, as in {'novelty': 'my_module.novelty'}, not "
                f"{functions!r}"
            )
        for name in functions:
            if name not in weights:
                raise ValueError(
                    f"reward_functions: {name} has no weight; add it to rewards, as in {{'ndcg': 1.0, {name!r}: 0.5}}"
                )

    def _check_iterations(self) -> None:
        """Raises ValueError if `num_iterations` cannot be combined with other options. For example, no checkpoint may
        be saved between two steps on the same rollouts. Rollouts are not saved, so a run resumed from such a
        checkpoint would end with other weights than an uninterrupted run."""
        if self.num_iterations == 1:
            return
        check_inert(self, ("train_sampling_strategy",), "rows are always shuffled if num_iterations is above 1")

        # Check the steps at which checkpoints are saved: the regular ones and the last step of the run. Whole epochs
        # always have a multiple of `num_iterations` steps.
        strategy = SaveStrategy(self.save_strategy).value
        if strategy == "no":
            return
        name = {"steps": "save_steps", "best": "eval_steps"}.get(strategy)
        every = 0 if name is None else getattr(self, name) or 0
        if 0 < every < 1:
            raise ValueError(
                f"{name} is {every:g}, a share of the run; give a number of steps, a multiple of num_iterations "
                f"({self.num_iterations})"
            )
        last = max(self.max_steps, 0)
        if not last and self.num_train_epochs % 1:
            raise ValueError(
                f"num_iterations is {self.num_iterations}, so num_train_epochs must be whole, not "
                f"{self.num_train_epochs:g}; the last checkpoint could be between two steps on the same rollouts"
            )
        between = next((step for step in (every, last) if step % self.num_iterations), None)
        if between is not None:
            raise ValueError(
                f"num_iterations is {self.num_iterations}, and a checkpoint would be written at step {between:g}, "
                "between two steps on the same rollouts; make max_steps and save_steps (with save_strategy=best: "
                "eval_steps) multiples of num_iterations"
            )
