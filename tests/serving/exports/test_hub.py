"""Tests exactly which files are pushed to the hub, and what a pushed model needs in order to recommend."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import trainer as transformers_trainer

from tests.trainer.runs import QUIET
from trl_rec import BearConfig, BearTrainer, Recommender, build_bear_trainer, cli, load, prepare
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.evaluation import EvaluationConfig, evaluate_with_baselines, evaluation_settings, read_evaluation
from trl_rec.models import RecModelConfig, make_model, make_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.scripts import evaluate
from trl_rec.serving.exports import export_published, push_run
from trl_rec.trainer import conclude


MODEL = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
DESCRIPTION = {"README.md", "recommender.json", "recipe.yaml", "metrics.json", "eval.jsonl", "environment.json"}
ALWAYS = MODEL | DESCRIPTION
CATALOG = {"catalog/catalog.json", "catalog/items.parquet"}
PRIOR = {"prior.safetensors", "choice.json"}
RESUME = {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "complete"}
USER = b"customer-"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with user ids that are easy to find in any file, and a finished run. The run folder contains several
    files with user ids."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "source").mkdir()
    rows = [[f"customer-{user}", f"i{(user + step) % 10}", step] for user in range(12) for step in range(8)]
    titles = [[f"i{item}", f"Item number {item}"] for item in range(10)]
    for name, header, table in (
        ("interactions", ["user_id", "item_id", "timestamp"], rows),
        ("items", ["item_id", "title"], titles),
    ):
        with (folder / "source" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *table])
    prepare(folder / "source", folder / "data")

    trainer = make_trainer(folder, folder / "run", prior="popularity", prior_strength="0.5")
    trainer.train()
    conclude(trainer, load(folder / "data").with_surface("item_token"), {})
    for name in ("report.html", "recs.parquet", "nested/users.parquet", "vectors.npy"):
        (folder / "run" / name).parent.mkdir(exist_ok=True)
        (folder / "run" / name).write_bytes(b"customer-1")
    pq.write_table(pa.table({"semantic_id": [["<customer-1>"]]}), folder / "run/catalog/user_ids.parquet")
    return folder


def make_trainer(folder: Path, output: Path, **options: Any) -> BearTrainer:
    config = BearConfig(
        str(output),
        max_steps=2,
        targets="all",
        eval_ks=[1, 5],
        save_steps=1,
        hub_model_id="me/mine",
        **QUIET,
        **options,
    )
    small = RecModelConfig(hidden_size=16, num_layers=1)
    return build_bear_trainer(load(folder / "data").with_surface("item_token"), config, small)


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Path:
    return shutil.copytree(world / "run", tmp_path / "run")


def with_license(run: Path, license: str | None) -> None:
    path = run / "catalog/catalog.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "license": license}))


def names_in(folder: str | Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("license", "options", "more"),
    [
        (None, {}, set()),
        ("non-commercial, no redistribution", {}, set()),
        ("cc-by-4.0", {}, CATALOG),
        (None, {"include_catalog": True}, CATALOG),
        (None, {"include_prior": True}, PRIOR),
        ("mit", {"include_catalog": True, "include_prior": True}, CATALOG | PRIOR),
    ],
)
def test_exactly_these_files_are_published(
    license: str | None, options: dict[str, bool], more: set[str], run: Path, tmp_path: Path
) -> None:
    assert any(USER in path.read_bytes() for path in run.rglob("*") if path.is_file())
    with_license(run, license)
    for folder in ("checkpoint-5", ".run.tmp"):  # folders that a LoRA run and a killed run leave behind
        (run / folder).mkdir(exist_ok=True)
        (run / folder / "adapter_model.safetensors").touch()
    names = export_published(run, tmp_path / "copy", **options)
    assert set(names) == names_in(tmp_path / "copy") == ALWAYS | more
    for path in (tmp_path / "copy").rglob("*"):
        assert path.is_dir() or USER not in path.read_bytes(), path
    settings = json.loads((tmp_path / "copy/recommender.json").read_text())
    assert ("prior" in settings) == bool(PRIOR & more)
    assert ("The catalogue is not included" in (tmp_path / "copy/README.md").read_text()) != bool(CATALOG & more)
    assert "prior" in json.loads((run / "recommender.json").read_text())  # the run folder itself has not changed


class Hub:
    """Takes the place of the hub. `folder` contains the files of the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pushed: list[tuple[str, set[str]]] = []
        self.asked: dict[str, Any] = {}

    def create_repo(self, repo: str, **options: Any) -> SimpleNamespace:
        self.asked = options
        return SimpleNamespace(repo_id=repo)

    def list_repo_files(self, repo_id: str, **options: Any) -> list[str]:
        return sorted(names_in(self.folder))

    def upload_folder(
        self, folder_path: Any, repo_id: str, path_in_repo: str = "", delete_patterns: Any = None, **options: Any
    ) -> Any:
        place = self.folder / path_in_repo
        deleted = huggingface_hub.utils.filter_repo_objects(names_in(place), allow_patterns=delete_patterns or [])
        for name in deleted:
            (place / name).unlink()
        shutil.copytree(folder_path, place, dirs_exist_ok=True)
        self.pushed.append((f"{repo_id}/{path_in_repo}".strip("/"), names_in(folder_path)))
        future: Future[None] = Future()
        future.set_result(None)
        return future if options.get("run_as_future") else SimpleNamespace(commit_url="https://hub/commit")


def test_the_command_pushes_the_published_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    hub = Hub(tmp_path / "on-the-hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: hub)
    cli.main(["export", "--model", str(run), "--to", "hub", "--repo", "me/mine", "--private", "true"])
    assert hub.pushed == [("me/mine", ALWAYS)] and hub.asked == {"private": True, "exist_ok": True}
    assert "pushed to https://hub/commit" in capsys.readouterr().out
    push_run(run, "me/mine", include_prior=True)
    assert hub.pushed[1][1] == ALWAYS | PRIOR
    assert not [path for path in run.parent.iterdir() if path not in (run, hub.folder)]  # no temporary folder remains


def test_a_push_deletes_files_of_an_earlier_push_that_it_leaves_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A catalogue or prior that a push leaves out is deleted from the repository, because it may belong to another
    model, or the user may no longer want to publish it. Other files stay."""
    hub = Hub(tmp_path / "on-the-hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: hub)
    push_run(run, "me/mine", include_catalog=True, include_prior=True)
    (hub.folder / "picture.png").touch()
    push_run(run, "me/mine", include_catalog=True, include_prior=True)
    assert names_in(hub.folder) == ALWAYS | CATALOG | PRIOR | {"picture.png"} and "deletes" not in caplog.text
    push_run(run, "me/mine", include_catalog=True)
    assert names_in(hub.folder) == ALWAYS | CATALOG | {"picture.png"}
    assert "this push deletes choice.json, prior.safetensors; earlier commits" in caplog.text
    push_run(run, "me/mine")
    assert names_in(hub.folder) == ALWAYS | {"picture.png"}
    assert "deletes catalog/catalog.json, catalog/items.parquet; earlier commits" in caplog.text
    assert "earlier commits of the repository still contain these files" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "hub"], "--to hub pushes to --repo, or writes the same files to --output; give one of them"),
        (["--to", "merged"], "--to merged writes a folder; give --output"),
        (
            ["--to", "merged", "--output", "x", "--include_prior", "true"],
            "--include_prior has no effect with --to mer",
        ),
        (["--to", "merged", "--output", "x", "--private", "false"], "--private has no effect with --to merged; leave"),
        (["--to", "hub", "--output", "x", "--private", "true"], "--private has no effect with --output; leave it out"),
        (["--to", "hub", "--output", "x", "--dtype", "float16"], "--dtype has no effect with --to hub; leave it out"),
        (["--to", "hub", "--output", "x", "--model", "nowhere"], "nowhere contains no model; give the output folder"),
    ],
)
def test_invalid_command_lines_are_refused(words: list[str], message: str, run: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--model", str(run), *words])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [{}, {"include_catalog": True, "prior": "popularity", "include_prior": True}])
def test_trainers_push_the_same_files(
    options: dict[str, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After training, trainers push the same files as `trl-rec export`. During training, they push checkpoints: the
    model, its settings, the catalogue if it is included, and the files for resuming.

    A catalogue or prior that an earlier push uploaded is deleted if the trainer leaves it out.
    """
    hub = Hub(tmp_path / "on-the-hub")
    for name in ("", "last-checkpoint"):
        shutil.copytree(world / "run/catalog", hub.folder / name / "catalog")
    monkeypatch.setattr(transformers_trainer, "hf_api", lambda: hub)
    strength = {"prior_strength": "0.5"} if options else {}
    trainer = make_trainer(
        world,
        tmp_path / "run",
        push_to_hub=True,
        hub_strategy="checkpoint",
        hub_always_push=True,
        **options,
        **strength,
    )
    trainer.train()
    catalog = CATALOG if options else set()
    while_training = MODEL | {"recommender.json"} | catalog
    assert [names for place, names in hub.pushed if place == "me/mine/last-checkpoint"] == [
        while_training | RESUME for _ in range(2)
    ]
    assert names_in(hub.folder / "last-checkpoint/catalog") == {Path(name).name for name in catalog}
    hub.pushed.clear()
    conclude(trainer, load(world / "data").with_surface("item_token"), {})
    trainer.push_to_hub()
    more = catalog | (PRIOR if options else set())
    assert hub.pushed[-1] == ("me/mine", ALWAYS | more)
    assert all(names <= ALWAYS | more for _, names in hub.pushed)
    assert {name for name in names_in(hub.folder) if not name.startswith("last-")} == ALWAYS | more


def test_a_run_without_a_final_evaluation_pushes_its_recipe(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path / "on-the-hub")
    monkeypatch.setattr(transformers_trainer, "hf_api", lambda: hub)
    trainer = make_trainer(world, tmp_path / "run", push_to_hub=True, final_split="none")
    trainer.train()
    conclude(trainer, load(world / "data").with_surface("item_token"), {})
    assert "recipe.yaml" in hub.pushed[-1][1]


def test_a_pushed_checkpoint_can_be_resumed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    hub = Hub(tmp_path / "on-the-hub")
    monkeypatch.setattr(transformers_trainer, "hf_api", lambda: hub)
    options = {"push_to_hub": True, "hub_strategy": "checkpoint", "hub_always_push": True}
    make_trainer(world, tmp_path / "run", **options).train()
    pushed = hub.folder / "last-checkpoint"
    for place in (pushed, shutil.copytree(pushed, tmp_path / "other/checkpoint-2").parent):
        trainer = make_trainer(world, tmp_path / "other" if place != pushed else tmp_path / "named")
        trainer.train(resume_from_checkpoint=str(place) if place == pushed else True)
        assert trainer.state.global_step == 2 and len(trainer.state.log_history) >= 2
    assert "skipped" not in caplog.text and "does not record which run wrote it" not in caplog.text


@pytest.fixture
def cached(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def push(**options: bool) -> None:
        """Fills the local cache of the hub with the files of a push. The hub itself is offline."""
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        repo = tmp_path / "cache/models--me--mine"
        export_published(run, repo / "snapshots/0123456789abcdef0123456789abcdef01234567", **options)
        (repo / "refs").mkdir()
        (repo / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")

    return push


def recommended(model: str | Path, **options: Any) -> list[tuple[str, float]]:
    recommender = Recommender.from_pretrained(model, device="cpu", **options)
    return [(one.item_id, one.score) for one in recommender.recommend(["i1", "i2"], 5)]


def test_a_model_is_loaded_by_its_hub_id(run: Path, cached: Callable[..., None]) -> None:
    cached(include_catalog=True, include_prior=True)
    assert recommended("me/mine") == recommended(run)
    with pytest.raises(ValueError, match="there is no folder me/other, and a hub repository of that name cannot"):
        Recommender.from_pretrained("me/other")


def test_a_model_without_its_catalogue_needs_the_dataset(
    run: Path, world: Path, cached: Callable[..., None], capsys: Any
) -> None:
    cached()
    with pytest.raises(ValueError, match=r"contains no catalogue .* give the dataset that the model was trained on"):
        Recommender.from_pretrained("me/mine")
    expected = recommended(run, prior=None)
    assert recommended("me/mine", catalog=world / "data") == expected != recommended(run)
    assert recommended("me/mine", catalog=load(world / "data").catalog) == expected
    other = prepare("toy", run.parent / "toy", toy_users=20, toy_items=50)
    with pytest.raises(ValueError, match="the given catalogue does not contain the items that the model was trained"):
        Recommender.from_pretrained("me/mine", catalog=other.catalog)

    cli.main(["recommend", "--model", "me/mine", "--dataset", str(world / "data"), "--user", "customer-1", "--k", "3"])
    assert "  2. Item number" in capsys.readouterr().out


@pytest.mark.parametrize("include_catalog", [True, False])
def test_a_hub_id_is_evaluated_as_its_run_folder(
    include_catalog: bool, run: Path, world: Path, tmp_path: Path, cached: Callable[..., None]
) -> None:
    """Surface, prompts, maximum length and prior are those of the run folder, even if the catalogue comes from the
    dataset."""
    cached(include_catalog=include_catalog, include_prior=True)
    settings = [evaluation_settings(EvaluationConfig(model=model)) for model in ("me/mine", str(run))]
    assert replace(settings[0], model=str(run)) == settings[1]
    assert (settings[0].surface, settings[0].prior) == ("item_token", "saved")
    words = ["--dataset", str(world / "data"), "--recall_at", "0", "--ks", "5", "--split", "validation"]
    kept = []
    for model, name in (("me/mine", "hub"), (str(run), "local")):
        evaluate.main([*words, "--model", model, "--output_dir", str(tmp_path / name)])
        kept.append(read_evaluation(tmp_path / name).results)
    assert list(kept[0]) == [name.replace("model run", "model mine") for name in kept[1]]
    assert [one.metrics for one in kept[0].values()] == [one.metrics for one in kept[1].values()]

    other = prepare("toy", tmp_path / "toy", toy_users=20, toy_items=50)
    with pytest.raises(ValueError, match="was trained on items other than those in"):
        evaluate_with_baselines(other, settings[0])


@pytest.mark.parametrize("include_catalog", [True, False])
def test_prompts_that_name_the_user_need_the_dataset(include_catalog: bool, tmp_path: Path) -> None:
    """The semantic IDs of users are never published, so the dataset is needed even if the catalogue is published."""
    dataset = prepare("toy", tmp_path / "data", toy_users=12, toy_items=50).with_surface("item_token")
    users = Ragged.from_lists([[f"<ua_{user}>"] for user in range(dataset.users.num_rows)], object)
    plain = dataset.catalog
    catalog = plain.with_surface("item_token", user_ids=users)
    catalog.save(tmp_path / "data/catalog")
    tokenizer = make_tokenizer(catalog)
    tokenizer.save_pretrained(tmp_path / "run")
    make_model(tokenizer, hidden_size=16).save_pretrained(tmp_path / "run")
    (tmp_path / "run/README.md").write_text("# The model\n")
    settings = {"max_length": 32, "renormalize": True, "length_penalty": 0.0, "num_beams": 10}
    save_recommender(tmp_path / "run", catalog, {"prompt": {"prompt_head": "{user}"}, **settings})
    with_license(tmp_path / "run", None)

    # 1. The model card says that prompts name the user, and the published folder contains no IDs of users.
    names = export_published(tmp_path / "run", tmp_path / "out", include_catalog=include_catalog)
    assert CATALOG & set(names) == (CATALOG if include_catalog else set())
    assert "catalog/user_ids.parquet" not in names_in(tmp_path / "out")
    assert "The model's prompts contain a semantic ID of the user" in (tmp_path / "out/README.md").read_text()

    # 2. Without the dataset, the model is refused, and the message gives the remedy. With the dataset, the lists equal
    # those of the run folder.
    remedy = "out was trained on prompts that contain the user's semantic ID.* pass the dataset folder that the model"
    with pytest.raises(ValueError, match=remedy if include_catalog else "give the dataset that the model was trained"):
        Recommender.from_pretrained(tmp_path / "out", device="cpu")
    with pytest.raises(ValueError, match=remedy):
        Recommender.from_pretrained(tmp_path / "out", device="cpu", catalog=plain)
    expected = Recommender.from_pretrained(tmp_path / "run", device="cpu").recommend(plain.ids[:2], 5, user=3)
    found = Recommender.from_pretrained(tmp_path / "out", device="cpu", catalog=tmp_path / "data")
    assert found.recommend(plain.ids[:2], 5, user=3) == expected
    user = dataset.users["user_id"][3].as_py()
    cli.main(
        [
            "recommend",
            "--model",
            str(tmp_path / "out"),
            "--dataset",
            str(tmp_path / "data"),
            "--user",
            user,
            "--k",
            "3",
        ]
    )
