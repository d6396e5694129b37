"""Manages the output folder of a run: finds the checkpoint to start from, and protects the work of earlier runs."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_rec.compat import name_or_path
from trl_rec.evaluation.kept.environment import ENVIRONMENT
from trl_rec.evaluation.kept.files import FINISHED, KEPT_FILES
from trl_rec.printing import first_line
from trl_rec.trainer.base.saving.checkpoints import (
    MARK,
    Mark,
    check_same_run,
    checkpoints,
    find_damage,
    newest_complete,
    read_mark,
)
from trl_rec.trainer.base.saving.recipe import RECIPE


if TYPE_CHECKING:
    from trl_rec.trainer.base.config import RecConfig

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
NOT_WEIGHTS = ("training_args.bin",)  # the arguments of Trainer, pickled
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)  # error codes for folders that are not writable
# Files, besides weights and checkpoints, that are removed when a new run replaces the work of an earlier run. The
# tokenizer, the catalogue and the model card are not listed, because every run that saves a model replaces them. The
# prior is not listed, because it matches a pattern of `WEIGHTS`.
OF_A_RUN = (
    "*.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "training_args.bin",
    "trainer_state.json",
    "recommender.json",
    "ranker.json",
    RECIPE,
    ENVIRONMENT,
    "recipe.json",  # written by older versions
    "eval.jsonl",
    "choice.json",
    "metrics.json",
    *KEPT_FILES,
)


def find_start(
    folder: Path,
    resume: str | bool | None,
    *,
    overwrite: bool,
    run: Callable[[], Mapping[str, Any]],
    launch: Mapping[str, Any],
) -> Path | None:
    """Returns the checkpoint to resume from, or None to start from scratch.

    Raises `ValueError` in each of these cases:
    - The checkpoint belongs to another run, or its sharding does not fit this launch.
    - `resume` names a checkpoint that is missing or damaged.
    - `resume` is `True`, and every checkpoint that was written completely (has a mark) is damaged now.
    - Neither `resume` nor `overwrite` is set, and the folder contains the work of an earlier run.

    Args:
        folder: The output folder.
        resume: The folder of a checkpoint, or `True` for the newest complete checkpoint. With `True`, the run starts
            from scratch if no checkpoint has a mark.
        overwrite: Whether a run that starts from scratch may replace the work of an earlier run.
        run: Function that returns the fingerprint of the run (see `fingerprint.py`), which is compared with the one in
            the checkpoint's mark. The function is only called if the checkpoint has a mark.
        launch: The sharding and the number of processes.
    """
    # 1. Start from scratch if no checkpoint is requested.
    if not resume:
        if not overwrite:
            check_no_work(folder)
        return None

    # 2. Find the checkpoint, and check that it belongs to this run.
    if resume is True:
        checkpoint = newest_complete(folder)
        if checkpoint is None:
            return None
        mark = read_mark(checkpoint)
    else:
        checkpoint = Path(resume)
        mark = _mark_of_named(checkpoint)
    if mark is not None:
        check_same_run(checkpoint, mark, run(), launch)
    return checkpoint


def default_output(model: str | PreTrainedModel | PeftModel | None, method: str) -> str:
    """Returns the default output folder, `MODEL-METHOD`, as in TRL's examples.

    Args:
        model: The model to start from, or its hub id, folder or file. None for a model from scratch.
        method: Name of the method.
    """
    source = model if isinstance(model, str) else "" if model is None else name_or_path(model)
    name = Path(source).resolve().name.removesuffix(".gguf") if source else "scratch"
    return f"{name}-{method}"


def check_output(args: RecConfig) -> None:
    """Raises `ValueError` if `output_dir` contains the work of an earlier run, unless `overwrite` or
    `resume_from_checkpoint` is set."""
    if not args.overwrite and not args.resume_from_checkpoint:
        check_no_work(Path(str(args.output_dir)))


def check_no_work(folder: Path) -> None:
    """Raises `ValueError` if the folder contains checkpoints or weights."""
    work = find_work(folder)
    if work is not None:
        raise ValueError(
            f"{folder} contains the work of an earlier run ({work.name}); set resume_from_checkpoint to continue that "
            "run, set overwrite to replace it, or choose another output_dir"
        )


def check_not_source(folder: Path, source: str) -> None:
    """Raises `ValueError` if a run that replaces the work in `folder` would remove the model that it starts from.

    Args:
        folder: The output folder.
        source: The folder or hub id that the model was loaded from; empty if it was made in memory.
    """
    if source and Path(source).is_dir() and Path(source).resolve() == folder.resolve():
        raise ValueError(
            f"{folder} is the folder that the model was loaded from, so overwrite would remove that model; choose "
            "another output_dir"
        )


def find_work(folder: Path) -> Path | None:
    """Returns a checkpoint or a weights file in the folder, or None if there is neither."""
    return next(iter([*checkpoints(folder), *_weights(folder)]), None)


def remove_work(folder: Path) -> None:
    """Removes the checkpoints, the weights, the files in `OF_A_RUN` and the finished rows of an interrupted evaluation
    from an output folder. Other files stay."""
    (folder / MARK).unlink(missing_ok=True)  # remove marks first, because a folder with a mark counts as complete
    for checkpoint in checkpoints(folder):
        (checkpoint / MARK).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)
    shutil.rmtree(folder / FINISHED, ignore_errors=True)
    for path in [*_weights(folder), *(path for pattern in OF_A_RUN for path in folder.glob(pattern))]:
        path.unlink(missing_ok=True)


def _weights(folder: Path) -> list[Path]:
    """Returns the files with weights in a folder, but not those in its subfolders."""
    found = [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern)) if path.is_file()]
    return [path for path in found if path.name not in NOT_WEIGHTS]


def _mark_of_named(checkpoint: Path) -> Mark | None:
    """Returns the mark of a checkpoint that the user has named, or None if it has no mark.

    Raises `ValueError` if the checkpoint is missing or damaged.
    """
    if not checkpoint.is_dir():
        raise ValueError(
            f"there is no checkpoint {checkpoint}; give an existing folder, or set resume_from_checkpoint to true"
        )
    mark = read_mark(checkpoint)
    damage = find_damage(checkpoint, mark or Mark({}, {}, {}))
    if damage is not None:
        raise ValueError(f"{checkpoint} is not a complete checkpoint: {damage}; choose an older checkpoint")
    return mark


class RunStart(TrainerCallback):
    """Callback that runs just before the first step, when all checks of the run have passed.

    Args:
        replaced (`Path`, *optional*): The output folder, if the work of an earlier run must be removed from it.
    """

    def __init__(self, replaced: Path | None) -> None:
        self.replaced = replaced

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object
    ) -> None:
        """Removes the work of an earlier run, and sets the logging, saving and evaluation intervals from `args`.

        If the run resumes from a checkpoint that has already reached the last step, no further step is trained.
        """
        if self.replaced is not None and PartialState().is_main_process:
            remove_work(self.replaced)
        PartialState().wait_for_everyone()

        # On resume, transformers 5.23 takes logging_steps, save_steps and eval_steps from the checkpoint instead of
        # `args`.
        state.compute_steps(args, state.max_steps)
        if state.global_step and state.global_step >= state.max_steps:
            control.should_training_stop = True


class NotWrittenError(OSError):
    """Raised if a checkpoint or model could not be written. The message says what the user can do."""


@contextmanager
def writing(folder: Path, output_dir: Path) -> Iterator[None]:
    """Context manager that raises write errors of its block as [`NotWrittenError`].

    Args:
        folder: The folder that is written to.
        output_dir: The output folder of the run.
    """
    try:
        yield
    except NotWrittenError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors raise their own errors, which can only be recognised by their messages.
        is_known = any(text in str(error) for text in ("PytorchStreamWriter", "inline_container", "os error"))
        if not is_known and getattr(error, "errno", None) is None:
            raise
        remedy = "free some space, or raise the limit on file sizes"
        in_text = re.search(r"os error (\d+)", str(error))  # safetensors' errors have no errno
        if (getattr(error, "errno", None) or int(in_text[1] if in_text else 0)) in FORBIDDEN:
            remedy = f"make {output_dir} writable"
        raise NotWrittenError(
            f"{folder} could not be written ({first_line(error)}); {remedy}{_where_to_resume(output_dir)}"
        ) from error


def describe_interrupt(output_dir: Path, step: int) -> str:
    """Returns the message that the user sees when training is interrupted."""
    return f"interrupted after step {step}{_where_to_resume(output_dir)}"


def _where_to_resume(output_dir: Path) -> str:
    """Returns the end of a message, which says where the next run can resume."""
    marked = next((folder for folder in checkpoints(output_dir) if (folder / MARK).is_file()), None)
    if marked is None:
        return "; no checkpoint is complete yet, so the next run starts from scratch"
    return f"; set resume_from_checkpoint to true to continue from {marked}"
