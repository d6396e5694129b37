"""Measures the figures in the documentation that require a GPU. With the default `--minutes`, this takes at most eight
minutes. No network is needed.

    python benchmarks/device.py [--output device.json] [--minutes 7] [--recipes NAME ...] [--tiny]
    python docs/write_device.py --add device.json

The second command writes the figures into the tables of docs/device.md and recipes/README.md. The program measures

- for each recipe that trains a Llama or Qwen model: whether it runs if torch may use 16 GB or 24 GB of GPU memory, its
  peak memory, and its seconds per step. The recipe is run for a few steps, with random weights in the shape of its
  model;
- for a training step of each of our four trainers and of the corresponding trainers of TRL: the seconds, the memory,
  and how often the host waits for the device;
- the seconds that a beam search with 50 beams adds to each forward pass.

Parts that cannot be started within `--minutes` are left out, and the output names them. With `--tiny`, models have two
layers, and the program also runs on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import yaml
from datasets import disable_progress_bars
from device_clock import Clock, clocks, start_afresh
from device_trainers import PAIRS, Bench, measure_decoder, measure_trainer
from device_world import World

from trl_rec.scripts.options.recipe_files import find_recipe, recipe_names
from trl_rec.scripts.verbs import SCRIPTS, TRAINING


CAPS = (16, 24)  # limits of GPU memory, in GB
STEPS = 4
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
# Keys of a recipe that have no effect on the figures of a few steps.
LEFT_OUT = ("metric_for_best_model", "load_best_model_at_end", "save_steps", "save_total_limit", "num_train_epochs")


def main() -> None:
    """Measures all parts. The figures so far are written before each part, so an interruption loses only the part
    being measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("device.json"))
    parser.add_argument("--minutes", type=float, default=7.0, help="after this time, begin no further part")
    parser.add_argument("--recipes", nargs="*", help="measure only these recipes")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        parser.error("there is no GPU; with --tiny, the program runs on a CPU, but its figures then mean nothing")

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.output, arguments.minutes, arguments.recipes, is_tiny=arguments.tiny)


def measure(folder: Path, output: Path, minutes: float, only: list[str] | None, *, is_tiny: bool) -> dict[str, Any]:
    """Measures all parts, writes the figures to `output`, and returns them.

    Args:
        folder: An empty folder for models, data and runs.
        output: The JSON file to write.
        minutes: The time after which no further part is begun.
        only (*optional*): The recipes to measure; by default all.
        is_tiny: Whether models have two layers.
    """
    deadline = time.monotonic() + 60 * minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(folder, device, is_tiny)
    bench = Bench(world, folder / "trainers", 3 if is_tiny else STEPS)
    figures: dict[str, Any] = {"machine": machine(device), "trainers": [], "decoder": None, "recipes": []}
    figures["left_out"] = []

    def measured(name: str, work: Any, *options: Any, **named: Any) -> Any:
        """Measures one part, unless the time is up. After an error, the other parts are still measured."""
        if time.monotonic() > deadline:
            figures["left_out"].append({"name": name, "reason": "time"})
            return None
        write()
        start = time.monotonic()
        try:
            found = work(*options, **named)
        except Exception as error:
            figures["left_out"].append({"name": name, "reason": f"{type(error).__name__}: {error}"[:200]})
            found = None
        print(f"{name}: {found} ({time.monotonic() - start:.0f} s)", flush=True)
        return found

    def write() -> None:
        output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

    # 1. Measure the trainers and the decoder.
    for ours, theirs, build_ours, build_theirs in PAIRS:
        pair = {"ours": ours, "theirs": theirs, "figures": None, "their_figures": None}
        figures["trainers"].append(pair)
        pair["figures"] = measured(ours, measure_trainer, bench, build_ours)
        pair["their_figures"] = measured(f"{theirs} (compared with {ours})", measure_trainer, bench, build_theirs)
    size = {"num_beams": 50, "num_prompts": 2 if is_tiny else 8, "runs": 1 if is_tiny else 3}
    figures["decoder"] = measured("decoder", measure_decoder, bench, **size)

    # 2. Measure the recipes.
    for name in consumer_recipes() if only is None else only:
        found = measured(name, measure_recipe, name, world)
        if found is not None:
            figures["recipes"].append(found)
    write()
    return figures


def machine(device: torch.device) -> dict[str, Any]:
    """Returns the machine's properties that the figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"device": name, "date": time.strftime("%Y-%m-%d"), **{name: version(name) for name in LIBRARIES}}


def consumer_recipes() -> list[str]:
    """Returns the recipes that train a Llama or Qwen model: 4-bit models first, and smaller models before larger ones.

    A recipe that starts from another recipe's model comes after that recipe.
    """
    names = [name for name in recipe_names() if name.split("/")[0] in TRAINING and re.search("llama|qwen", name)]

    def key(name: str) -> tuple[bool, float, bool, str]:
        settings = settings_of(name)
        size = float(re.search(r"-([\d.]+)b", name)[1])  # type: ignore[index]  # each name contains the size
        starts_from_a_run = settings["model_name_or_path"].startswith("runs/")
        return not settings.get("load_in_4bit", False), size, starts_from_a_run, name

    return sorted(names, key=key)


def settings_of(name: str) -> dict[str, Any]:
    """Returns the settings of a recipe."""
    settings: dict[str, Any] = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
    return settings


def measure_recipe(name: str, world: World) -> dict[str, Any]:
    """Runs a recipe with one memory limit of `CAPS` after the other, until one suffices. Returns this limit as `fits`,
    and the figures of the run. If no limit suffices, `fits` is None, and there are no figures of a run."""
    settings = settings_of(name)
    rows = settings.get("per_device_train_batch_size", 8)
    found = {"name": name, "rows": rows, "batches_per_step": settings.get("gradient_accumulation_steps", 1)}
    for cap in CAPS:
        figures = run_recipe(name, world, cap)
        if figures is not None:
            return {**found, "fits": cap, **figures}
    return {**found, "fits": None}


def run_recipe(name: str, world: World, cap: int | None) -> dict[str, Any] | None:
    """Runs a few steps of a recipe, one batch each, and an evaluation of one batch if the recipe names a dataset.

    Some recipes train with several trainers in turn. Returns the figures of the last one, or None if the memory does
    not suffice.
    """
    verb = name.split("/")[0]
    recipe = world.folder / "recipes" / f"{name}.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump(short(settings_of(name), world)), encoding="utf-8")
    script = import_module(f"trl_rec.scripts.{SCRIPTS.get(verb, verb)}")
    figures = None
    start_afresh(world.device, cap)
    try:
        with clocks(lambda: Clock(world.device, profiled=False)) as made:
            script.main(["--config", str(recipe)])
        figures = made[-1].figures()
    except torch.OutOfMemoryError:
        pass  # the error keeps tensors alive until here; `start_afresh` below frees their memory
    start_afresh(world.device)
    return figures


def short(settings: dict[str, Any], world: World) -> dict[str, Any]:
    """Returns the settings of a recipe, changed so that the run takes a few steps with the models and data of
    `world`."""
    changed = {key: value for key, value in settings.items() if key not in LEFT_OUT}
    rows = changed["per_device_train_batch_size"]

    # 1. Set the folders.
    output = str(world.folder / settings["output_dir"])
    changed |= {"output_dir": output, "model_name_or_path": str(start(settings["model_name_or_path"], world))}
    if "dataset" in settings:
        changed["dataset"] = str(world.dataset(Path(settings["dataset"]).name))
    if "preferences" in settings:
        changed["preferences"] = str(world.preferences())

    # 2. Take few steps of one batch each, and evaluate one batch of users.
    changed |= {"max_steps": STEPS, "gradient_accumulation_steps": 1, "save_strategy": "no"}
    changed |= {"logging_steps": 1_000, "disable_tqdm": True}
    if "dataset" in settings:
        changed |= {"eval_strategy": "steps", "eval_steps": STEPS, "final_split": "none"}
        changed["max_users"] = changed.get("per_device_eval_batch_size", 8)
    if "max_prompts" in settings:
        changed["max_prompts"] = STEPS * rows
    if "stages" in settings:
        changed |= {"stages": [{**settings["stages"][0], "max_prompts": 4 * STEPS * rows}], "keep": "last"}
    else:
        changed["overwrite"] = True

    # 3. Use small batches in a tiny world, and float32 on a CPU.
    if world.is_tiny:
        changed |= {"per_device_train_batch_size": min(rows, 2), "max_users": 2}
    if world.device.type == "cpu":
        changed |= {"use_cpu": True, "bf16": False, "dtype": "float32"}
    return changed


def start(model: str, world: World) -> Path:
    """Returns the folder of the model that a recipe starts from. Makes it first if necessary."""
    if not model.startswith("runs/"):
        return world.model(model)
    folder = world.folder / model
    if not (folder / "adapter_config.json").is_file():
        maker = next(name for name in recipe_names() if settings_of(name).get("output_dir") == model)
        run_recipe(maker, world, None)
    return folder


if __name__ == "__main__":
    main()
