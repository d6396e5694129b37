"""Compares training on rows with many targets and training on one row per target, at equal processor time.

    OMP_NUM_THREADS=1 python benchmarks/equal_time.py DATASET --model MODEL --arm every --output runs/equal-time
    OMP_NUM_THREADS=1 python benchmarks/equal_time.py DATASET --model MODEL --arm rows --output runs/equal-time
    trl-rec compare runs/equal-time-every runs/equal-time-rows

Both arms train the language model `--model` on titles, with the loss and the learning rate of the recipe `--config`:

- `every`: one row has many targets, so the items before a target are not read again for each target;
- `rows`: one row per target, with `--rows` rows per step.

Time is the processor time of the steps, without evaluations. It equals the elapsed time with one thread on an idle
machine. The learning rate rises over the first 2 % of the time, and then falls linearly to 0.

After each tenth of the time, both arms measure the loss per target on the same validation targets, about `--targets`
in number, and save a checkpoint. With `--final_targets`, they also measure it at the end, on about this many targets.
After an interruption, run the same command again to continue from the last checkpoint. In the run folder, `loss.json`
contains these measurements, and `metrics.json` contains the metrics of the recipe's `final_split`, which
`--set final_split=SPLIT` changes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_rec.data import RecDataset, load
from trl_rec.files import write_json
from trl_rec.models import RecModelConfig
from trl_rec.scripts.options.parsing import DataArguments, given, parse, show_progress
from trl_rec.trainer import BearConfig, BearTrainer, build_bear_trainer, conclude


RISE = 0.02  # share of the time in which the learning rate rises
MEASUREMENTS = 10
ARMS = ("every", "rows")
LOSSES = "loss.json"
POINTS = "seconds, steps, loss"


def main() -> None:
    """Trains one arm, and prints the measurements of both arms, as far as they exist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="folder made by trl-rec prepare")
    parser.add_argument("--model", required=True, help="folder or hub id of a language model")
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--output", required=True, help="run folder, to which the name of the arm is appended")
    parser.add_argument("--config", default="bear/office-titles", help="a recipe of 'trl-rec bear' with titles")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=32, help="rows per step of the arm `rows`")
    parser.add_argument("--targets", type=int, default=2000, help="validation targets after each tenth of the time")
    parser.add_argument("--final_targets", type=int, default=0, help="validation targets at the end; 0 for none")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the recipe to change")
    arguments = parser.parse_args()

    # 1. Build the trainer. The clock ends the run, so the number of steps is set to a value that is never reached.
    argv = [*words_of(arguments), *(word for pair in arguments.set for word in as_option(pair))]
    data, model, config = parse((DataArguments, RecModelConfig, BearConfig), argv, "bear")
    show_progress()
    dataset = load(data.dataset).with_surface("title")
    trainer = build_bear_trainer(dataset, config, model)
    held_out = HeldOut(trainer, dataset, arguments.targets)
    trainer.add_callback(Clock(3600 * arguments.hours, held_out))

    # 2. Train, and evaluate as `trl-rec bear` does.
    trainer.train(resume_from_checkpoint=True)
    if arguments.final_targets:
        measure_again(trainer, dataset, arguments.final_targets)
    conclude(trainer, dataset, {**vars(data), **vars(model)}, recipe=given(argv, data, model))
    trainer.end()
    print("\n".join(loss_table(arguments.output)))


def words_of(arguments: argparse.Namespace) -> list[str]:
    """Returns the options of `trl-rec bear` for the arm, as words of a command line."""
    options: dict[str, object] = {
        "config": arguments.config,
        "dataset": arguments.dataset,
        "surface": "title",
        "model_name_or_path": arguments.model,
        "output_dir": f"{arguments.output}-{arguments.arm}",
        "max_steps": 10**6,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": "false",
        "logging_steps": 10,
        "report_to": "none",
        "resume_from_checkpoint": "true",
    }
    if arguments.arm == "rows":
        options |= {"targets": "last", "join_windows": "false", "per_device_train_batch_size": arguments.rows}
    elif not has_windows(load(arguments.dataset)):
        options["join_windows"] = "false"
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def as_option(pair: str) -> tuple[str, str]:
    """Returns KEY=VALUE as words of a command line."""
    key, _, value = pair.partition("=")
    return f"--{key}", value


def has_windows(dataset: RecDataset) -> bool:
    """Returns whether the dataset was made from windows (one target and the items before it), such as BIGRec's."""
    return bool(dataset.card["split"] == "windows")


def loss_table(output: str) -> list[str]:
    """Returns the lines of a Markdown table with the measurements of both arms side by side.

    The cells of missing measurements are empty. After the table, there is one line for each measurement on
    `--final_targets` targets.

    Args:
        output: The run folder without the name of the arm.
    """
    files = [Path(f"{output}-{arm}", LOSSES) for arm in ARMS]
    measured = [json.loads(file.read_text()) if file.exists() else {POINTS: []} for file in files]
    points = [one[POINTS] for one in measured]
    lines = [f"| time | {' | '.join(f'{arm}: steps | loss' for arm in ARMS)} |", "|---" * (1 + 2 * len(ARMS)) + "|"]
    for tenth in range(max(map(len, points))):
        cells = []
        for one in points:
            _, steps, loss = one[tenth] if tenth < len(one) else (None, "", None)
            cells.append(f"{steps} | {'' if loss is None else f'{loss:.3f}'}")
        lines.append(f"| {(tenth + 1) / MEASUREMENTS:.0%} | {' | '.join(cells)} |")
    for arm, one in zip(ARMS, measured, strict=True):
        if "final" in one:
            lines.append(f"{arm}, at the end, on {one['final'][0]:,} targets: {one['final'][1]:.3f}")
    return lines


def measure_again(trainer: BearTrainer, dataset: RecDataset, num_targets: int) -> None:
    """Adds the loss of the trained model on `num_targets` validation targets to the measurements."""
    file = Path(str(trainer.args.output_dir), LOSSES)
    held_out = HeldOut(trainer, dataset, num_targets)
    write_json(file, json.loads(file.read_text()) | {"final": [held_out.num_targets, held_out.loss()]})


class HeldOut:
    """Measures the loss per target on validation rows with about `num_targets` targets in total.

    For this measurement, the model reads all targets of a row at once in both arms. The loss equals that of one row
    per target.
    """

    def __init__(self, trainer: BearTrainer, dataset: RecDataset, num_targets: int) -> None:
        # 1. Choose rows that are spread over the split.
        split = dataset.validation
        counts = np.array([len(targets) for targets in split["targets"]])
        num_rows = min(len(split), int(num_targets / counts.mean()))
        chosen = np.linspace(0, len(split) - 1, num_rows).round().astype(int)
        self.num_targets = int(counts[chosen].sum())

        # 2. Make the batches with a trainer that never trains. It accepts only rows that are marked as training
        # rows.
        rows = Dataset.from_list(list(split.select(chosen.tolist())), features=split.features, split="train")
        config = BearConfig(
            str(Path(str(trainer.args.output_dir), "held-out")),
            targets="all",
            join_windows=has_windows(dataset),
            bear_weight=0,
            softmax=trainer.args.softmax,
            max_length=trainer.args.max_length,
            use_cpu=trainer.args.use_cpu,
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        )
        self.trainer = BearTrainer(
            trainer.model,
            config,
            train_dataset=rows,
            processing_class=trainer.processing_class,
            catalog=trainer.catalog,
        )
        encoded: Any = sorted(self.trainer.train_dataset, key=lambda row: len(row["input_ids"]))  # for less padding
        size = trainer.args.per_device_eval_batch_size
        self.batches = [
            self.trainer.data_collator(encoded[start : start + size]) for start in range(0, len(encoded), size)
        ]

    @torch.no_grad()
    def loss(self) -> float:
        """Returns the sum of the loss over all tokens, divided by the number of targets."""
        self.trainer.model.eval()
        device = self.trainer.args.device
        total = 0.0
        for batch in self.batches:
            batch = {
                key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()
            }
            # With `num_items_in_batch` 1, the losses of the tokens are added instead of averaged.
            loss: Any = self.trainer.compute_loss(
                self.trainer.model, batch, num_items_in_batch=torch.tensor(1, device=device)
            )
            total += loss.item()
        self.trainer.model.train()
        return total / self.num_targets


class Clock(TrainerCallback):
    """Ends the run after a number of processor seconds. Also sets the learning rate and measures the validation loss.

    Attributes:
        limit: Processor seconds of a run.
        held_out: Measures the validation loss.
        seconds: Processor seconds of the steps so far.
        points: Seconds, steps and validation loss at each measurement.
    """

    def __init__(self, limit: float, held_out: HeldOut) -> None:
        self.limit = limit
        self.held_out = held_out
        self.seconds = 0.0
        self.points: list[tuple[float, int, float]] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Reads the measurements up to the checkpoint from which the run continues, if there is one."""
        self.file = Path(str(args.output_dir), LOSSES)
        if state.global_step:
            points = json.loads(self.file.read_text())[POINTS]
            self.points = [tuple(point) for point in points if point[1] <= state.global_step]
            self.seconds = self.points[-1][0]

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **of: Any) -> None:
        """Sets the learning rate according to the time that has passed, and starts the clock."""
        passed = min(1, self.seconds / self.limit)
        for group in of["optimizer"].param_groups:
            group["lr"] = args.learning_rate * min(passed / RISE, 1 - passed)
        self.since = time.process_time()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stops the clock. After each tenth of the time, measures the validation loss and requests a checkpoint."""
        self.seconds += time.process_time() - self.since
        if self.seconds >= self.limit * (len(self.points) + 1) / MEASUREMENTS:
            self.points.append((self.seconds, state.global_step, self.held_out.loss()))
            seconds, steps, loss = self.points[-1]
            print(f"after {seconds:,.0f} s and {steps:,} steps: validation loss {loss:.4f} per target", flush=True)
            write_json(self.file, {"targets": self.held_out.num_targets, POINTS: self.points})
            control.should_save = True
        control.should_training_stop = self.seconds >= self.limit


if __name__ == "__main__":
    main()
