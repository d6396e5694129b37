"""Defines and checks the settings that all stages of a schedule (a sequence of preference stages) share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trl_rec.data.dataset import RecDataset
from trl_rec.evaluation.tables import direction_of
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.trainer.base.early_stopping import check_metric
from trl_rec.trainer.bear.config import BearConfig
from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig


if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class Schedule:
    """The dataset, the trainer configuration and the model options of a preference schedule.

    Args:
        dataset (`RecDataset`): The dataset. Its catalogue must have the surface that the policy writes.
        config (`SoftmaxDPOConfig`): Configuration of the trainer. Each stage gets a folder inside `output_dir`.
        keep (`str`, *optional*, defaults to `"best"`): Which policy a stage passes on to the next stage. With
            `"last"`, it is the policy after the stage's last step or, with `load_best_model_at_end`, the stage's best
            checkpoint. With `"best"`, the stage selects its best checkpoint or, with `eval_strategy="no"`, the policy
            after its last step. The selected policy is passed on if it is better than the policy that the stage
            started from. Otherwise, the policy that the stage started from is passed on. Policies are compared by the
            validation metric that `metric_for_best_model` names or, by default, by NDCG at the largest cutoff.
        adapter (`PeftConfig`, *optional*): Adapter to train if the policy that the first stage starts from has none.
        model_options (`dict`, *optional*): Arguments for loading models (`dtype`, `quantization_config`, ...).
        recipe (`dict`, *optional*): Keys to write to `recipe.yaml` besides those of `config`. By default, they are
            made from this schedule, so that `trl-rec align3gr` can run the same stages from the recipe.
    """

    dataset: RecDataset
    config: SoftmaxDPOConfig
    keep: str = "best"
    adapter: PeftConfig | None = None
    model_options: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.keep not in ("best", "last"):
            raise ValueError(f"keep must be 'best' or 'last', not {self.keep!r}")
        check_resumes_by_itself(self.config)
        if self.config.push_to_hub:
            raise ValueError(
                "push_to_hub would push every stage; leave it out, and push the final policy with trl-rec export --to "
                f"hub --model {self.config.output_dir} --repo NAME"
            )
        if self.keep == "best":
            _check_comparable(self.config.metric_for_best_model)
        if self.picks_checkpoints:
            _check_best_is_saved(self.config)
        else:
            check_metric(self.config)

    @property
    def metric(self) -> str:
        """The validation metric by which policies are compared."""
        name = self.config.metric_for_best_model
        if name is None or direction_of(name.removeprefix("eval_")) == 0:  # not a metric of rankings, such as the loss
            return f"eval_ndcg@{max(self.config.eval_ks)}"
        return f"eval_{name.removeprefix('eval_')}"

    def is_better(self, some: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Returns whether the first of two policies is better, given their validation metrics."""
        return direction_of(self.metric.removeprefix("eval_")) * (some[self.metric] - other[self.metric]) > 0

    @property
    def picks_checkpoints(self) -> bool:
        """Whether `keep` makes each stage end with its best checkpoint rather than with its last step."""
        return self.keep == "best" and self.config.eval_strategy != "no"

    @property
    def output(self) -> Path:
        """The folder of the whole schedule."""
        return Path(str(self.config.output_dir))

    def folder(self, number: int, stage: PreferenceStage) -> Path:
        """Returns the folder of a stage. Stages are numbered from 1."""
        return self.output / f"{number}-{stage.name}"


def load_on_device(load: Callable[..., Any], folder: str | Path, schedule: Schedule) -> Any:
    """Loads a model from `folder` and moves it to the device of this process.

    Args:
        load: `load_model` or `load_policy`. Both already place a quantised model on the device.
        folder: Folder of the model.
        schedule: The schedule. Its `model_options` are passed to `load`.
    """
    options = schedule.model_options or {}
    model = load(folder, **options)
    return model if "quantization_config" in options else model.to(PartialState().device)


def check_resumes_by_itself(config: BearConfig | SoftmaxDPOConfig) -> None:
    """Raises `ValueError` if `overwrite` is set, or if `resume_from_checkpoint` is neither unset nor true.

    Stages, and the supervised fine-tuning before them, always resume from their newest checkpoint.
    """
    given = "true" if config.resume_from_checkpoint is None else str(config.resume_from_checkpoint).lower()
    option = "overwrite" if config.overwrite else f"resume_from_checkpoint: {config.resume_from_checkpoint}"
    if config.overwrite or given != "true":
        raise ValueError(
            f"{option} has no effect with stages, which always resume automatically; leave it out, or, to start "
            f"again, delete {config.output_dir} or choose another output_dir"
        )


def _check_comparable(metric: str | None) -> None:
    """Raises `ValueError` if it is not known whether high or low values of `metric_for_best_model` are better."""
    # `TrainingArguments` sets "loss" if load_best_model_at_end is set without a metric.
    if metric not in (None, "loss") and direction_of(metric.removeprefix("eval_")) == 0:
        raise ValueError(
            f"keep='best' compares policies by metric_for_best_model, but it is not known whether high or low values "
            f"of {metric!r} are better; choose a metric such as ndcg@10 or preference_accuracy, or leave it out"
        )


def _check_best_is_saved(config: SoftmaxDPOConfig) -> None:
    """Raises `ValueError` if the best evaluation could be at a step without a checkpoint.

    In that case, `transformers.Trainer` would silently load another checkpoint or keep the last weights.
    """
    if config.save_strategy == config.eval_strategy == "steps":
        # If save_steps were a multiple of eval_steps, the best evaluation could fall between two checkpoints.
        eval_steps = config.eval_steps or config.logging_steps
        if config.save_steps != eval_steps:
            raise ValueError(
                f"keep='best' keeps the best checkpoint, so save_steps must be equal to eval_steps, but they are "
                f"{config.save_steps:g} and {eval_steps:g}"
            )
    elif config.save_strategy not in (config.eval_strategy, "best"):
        saves = SaveStrategy(config.save_strategy).value
        evaluates = IntervalStrategy(config.eval_strategy).value
        raise ValueError(
            f"keep='best' keeps the best checkpoint, but save_strategy {saves!r} does not save at every evaluation of "
            f"eval_strategy {evaluates!r}; save and evaluate at the same steps, or leave out "
            "eval_strategy, so that only the policies before and after a stage are compared"
        )
