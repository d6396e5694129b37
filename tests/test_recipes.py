"""Every recipe can be parsed, and every training recipe takes two real training steps on a small dataset with a tiny
model.

All recipes in the folder `recipes` are tested. A new recipe needs no entry here, unless it names a dataset that the
fixture `world` does not make. The recipes run in the folder of this fixture. If a recipe starts from the output of
another recipe, the other recipe runs first.
"""

import csv
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from transformers import PreTrainedModel, Trainer, TrainerCallback

from tests.stand_ins import save_stand_in
from trl_rec import load, prepare
from trl_rec.ragged import Ragged
from trl_rec.scripts.options.recipe_files import find_recipe, recipe_names, recipes_folder
from trl_rec.scripts.verbs import SCRIPTS, TRAINING


# Options that replace the GPU settings of a recipe, except 4-bit weights.
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--dtype", "float32"]
TWO_STEPS = ["--max_steps", "2", "--disable_tqdm", "true"]
TRAINING_RECIPES = [name for name in recipe_names() if name.split("/")[0] in TRAINING]
# Recipes whose names end in one of these texts take their two steps only in `make test-long`. They use the settings of
# a paper's authors. Training with these settings takes a long time, and runs the same code as with our own settings.
LONG = ("published", "s-dpo", "sprec", "7b-align3gr")
TWO_STEP_RECIPES = [
    pytest.param(name, marks=pytest.mark.long) if name.endswith(LONG) else name for name in TRAINING_RECIPES
]
TOY = {"toy_users": 24, "toy_items": 60}


def script_of(name: str) -> ModuleType:
    verb = name.split("/")[0]
    return import_module(f"trl_rec.scripts.{SCRIPTS.get(verb, verb)}")


def recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load(find_recipe(name).read_text())


class Parsed(Exception):
    """Ends a script once its arguments are parsed."""


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_can_be_parsed_and_an_unknown_key_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = script_of(name)
    on_cpu = ON_CPU if name in TRAINING_RECIPES else []
    parse = script.parse

    def stop(*arguments: Any) -> None:
        raise Parsed(parse(*arguments))

    monkeypatch.setattr(script, "parse", stop)
    with pytest.raises(Parsed):
        script.main(["--config", name, *on_cpu])
    (tmp_path / "more.yaml").write_text(find_recipe(name).read_text() + "\nbogus: 1\n")
    with pytest.raises(ValueError, match="bogus"):
        script.main(["--config", str(tmp_path / "more.yaml"), *on_cpu])


@pytest.mark.parametrize("path", sorted((recipes_folder() / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    """Accelerate refuses unknown keys, except in the sections for DeepSpeed and FSDP. For these sections, the test
    checks that each key is an option of `accelerate launch`."""
    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.stem == "cpu" else 2)
    known = {option.dest for option in launch_command_parser()._actions}
    for section in (config.deepspeed_config, config.fsdp_config):
        assert set(section or {}) <= known


class Watch(TrainerCallback):
    """Records the steps, the losses and the changed parameters of one training run, and checks its gradients."""

    def __init__(self) -> None:
        self.steps = 0
        self.losses = []
        self.quantized = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: PreTrainedModel, **others: Any) -> None:
        args.logging_steps = state.logging_steps = 1
        self.quantized = any(type(module).__name__ == "Linear4bit" for module in model.modules())
        self.before = {
            name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.requires_grad
        }

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: PreTrainedModel, **others: Any
    ) -> None:
        gradients = {name: tensor.grad for name, tensor in model.named_parameters() if name in self.before}
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
        assert any(gradient.any() for gradient in gradients.values())

    def on_step_end(self, args: Any, state: Any, control: Any, model: PreTrainedModel, **others: Any) -> None:
        self.steps += 1
        now = dict(model.named_parameters())
        self.moved = {name for name, tensor in self.before.items() if not torch.equal(tensor, now[name])}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **others: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the recipes run. It contains small datasets with the names that the recipes use."""
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("toy", "ml-100k", "beauty", "my-log")):
        prepare("toy", folder / "data" / name, seed=seed, **TOY)
    prepare("toy", folder / "data" / "beauty-ratings", **TOY | {"toy_users": 8})
    for name in ("toy-next-ten", "ml-100k-next-ten"):
        prepare("toy", folder / "data" / name, split="leave_last", num_held_out=10, **TOY)
    prepare("toy", folder / "data" / "toy-rated", split="leave_last", num_held_out=5, **TOY)
    titles = load(folder / "data" / "toy").catalog.titles
    windows = write_windows(folder / "office", [f"{title} Pens, {len(title)} Pack" for title in titles])
    for name in ("office", "office-10000"):
        prepare(windows, folder / "data" / name)
    answers = [
        {"prompt": f"After {title}, read", "chosen": titles[0], "rejected": titles[1:4]} for title in titles[4:]
    ]
    (folder / "preferences.jsonl").write_text("\n".join(json.dumps(answer) for answer in answers))
    return folder


def write_windows(folder: Path, titles: list[str], num_users: int = 10, num_windows: int = 10) -> Path:
    """Writes files in the format of BIGRec's Amazon Office data. Each row is a window over a user's items: a target
    and up to ten items before it."""
    folder.mkdir()
    draw = random.Random(0)
    walks = [draw.sample(range(len(titles)), num_windows + 2) for _ in range(num_users)]
    for split, ends in (("train", range(2, num_windows + 1)), ("test", [num_windows + 1])):
        windows = [
            (f"u{user}", walks[user][max(0, end - 10) : end + 1], end) for end in ends for user in range(num_users)
        ]
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("user_id", "item_ids", "timestamp"), *windows])
    (folder / "id2name4Rec.json").write_text(json.dumps({str(item): title for item, title in enumerate(titles)}))
    return folder


@pytest.fixture
def take_two_steps(world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Watch]]:
    """A function that runs a recipe in the folder `world`, and returns a record of each training run of the recipe."""
    watches: list[Watch] = []
    train = Trainer.train

    def watched(self: Trainer, *arguments: Any, **options: Any) -> Any:
        watches.append(Watch())
        self.add_callback(watches[-1])
        return train(self, *arguments, **options)

    def run(name: str, *options: str) -> list[Watch]:
        settings = recipe(name) | dict(
            zip([key.removeprefix("--") for key in options[::2]], options[1::2], strict=True)
        )
        model = provide(settings, world, run)
        watches.clear()
        # Overwrite the output folder, because another recipe may have written to it. The verb `align3gr` refuses
        # `--overwrite`, because it resumes automatically.
        again = [] if name.startswith("align3gr/") else ["--overwrite", "true"]
        fewer = ["--gradient_accumulation_steps", "2"] if settings.get("gradient_accumulation_steps", 1) > 8 else []
        script_of(name).main(["--config", name, *ON_CPU, *TWO_STEPS, *fewer, *again, *options, *model])
        return watches

    monkeypatch.setattr(Trainer, "train", watched)
    monkeypatch.chdir(world)
    return run


def provide(settings: dict[str, Any], world: Path, run: Callable[..., Any]) -> list[str]:
    """Makes the model and the semantic IDs (of items and of users) that a recipe starts from, and returns the options
    that the recipe then needs."""
    if "tokenize" in settings:  # the recipe replaces the IDs that another recipe made
        return ["--overwrite_ids", "true"]
    if settings.get("surface") == "semantic_id" and load(settings["dataset"]).catalog.semantic_ids is None:
        script_of("tokenize/toy").main(["--config", "tokenize/toy", "--dataset", settings["dataset"]])
    if "{user}" in settings.get("prompt_head", ""):
        name_users(Path(settings["dataset"]))
    model = settings.get("model_name_or_path")
    if model is None or Path(model).exists():
        return []
    if not model.startswith("runs/"):
        titles = load(settings.get("dataset", "data/office")).catalog.titles
        return ["--model_name_or_path", str(save_stand_in(model, titles, world / "models" / model))]
    run(next(name for name in TRAINING_RECIPES if recipe(name)["output_dir"] == model))
    return []


def name_users(folder: Path) -> None:
    """Adds semantic IDs of users to the catalogue of a dataset folder, if it has none."""
    dataset = load(folder)
    if dataset.catalog.user_ids is None:
        ids = Ragged.from_lists(
            [[f"<ua_{user % 8}>", f"<ub_{user // 8}>"] for user in range(dataset.users.num_rows)], object
        )
        replace(dataset.catalog, user_ids=ids).save(folder / "catalog")


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO_STEP_RECIPES)
def test_a_training_recipe_takes_two_steps(name: str, take_two_steps: Callable[..., list[Watch]]) -> None:
    settings = recipe(name)
    watches = take_two_steps(name)
    stage_reports = Path(settings["output_dir"], "stages.json")
    skipped = []
    if stage_reports.is_file():
        skipped = [stage for stage in json.loads(stage_reports.read_text()) if stage["without_negatives"] == 1]
    parts = (
        len(settings.get("stages", [{}])) - len(skipped) + ("rating_epochs" in settings) + ("supervised" in settings)
    )
    assert len(watches) == parts
    for watch in watches:
        assert watch.steps == 2 and len(watch.losses) == 2 and all(map(math.isfinite, watch.losses))
        assert watch.moved and watch.quantized == settings.get("load_in_4bit", False)
        trained = ("lora_", "trainable_tokens")
        assert not settings.get("use_peft") or all(any(part in name for part in trained) for name in watch.before)
    assert Path(settings["output_dir"], "metrics.json").is_file() or "dataset" not in settings


@pytest.mark.slow
def test_an_adapter_and_new_tokens_learn_several_tasks_on_an_nf4_model(
    take_two_steps: Callable[..., list[Watch]],
) -> None:
    adapter = ["--use_peft", "true", "--load_in_4bit", "true", "--lora_target_modules", "all-linear"]
    (watch,) = take_two_steps("bear/ml-100k-multitask", "--model_name_or_path", "Qwen/Qwen2.5-1.5B", *adapter)
    assert watch.quantized and watch.steps == 2 and all(map(math.isfinite, watch.losses))
    assert all("lora_" in name or "trainable_tokens" in name for name in watch.before)
    assert any("trainable_tokens" in name for name in watch.moved) and any("lora_B" in name for name in watch.moved)
