"""Selects the files of a run folder that may be published: pushed to the hub, or exported.

Only files that match a pattern in this module are published. All other files stay in the run folder. Examples are
metric values per user, rankings, lists recommended to users, reports, files that were added by hand, and
`training_args.bin`, a pickle that contains the hub token.

The published files contain nothing about individual users. The catalogue and the prior, which counts how often users
chose items, belong to the data rather than to the model. The catalogue is published if the licence of the data allows
it or the caller asks for it, and the prior only if the caller asks for it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from trl_rec.decoding.priors.files import PRIOR
from trl_rec.decoding.priors.run_folder import drop_run_prior
from trl_rec.decoding.run_folder import CATALOG, SETTINGS, names_users
from trl_rec.evaluation.kept.environment import ENVIRONMENT
from trl_rec.evaluation.kept.files import METRICS
from trl_rec.evaluation.prior_choice.choice_file import CHOICE
from trl_rec.files import write_text
from trl_rec.items.licenses import allows_redistribution
from trl_rec.trainer.base.saving.checkpoints import MARK
from trl_rec.trainer.base.saving.recipe import RECIPE


logger = logging.getLogger(__name__)
CARD = "README.md"
# In patterns, `*` does not match `/`.
WEIGHTS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "pytorch_model*.bin",
    "*.index.json",
    "adapter_config.json",
    "adapter_model.*",
    "configuration_*.py",  # the code of models that transformers does not contain
    "modeling_*.py",
    "*/adapter_config.json",  # a second adapter, such as the reference policy
    "*/adapter_model.*",
)
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "spiece.model",
    "chat_template.jinja",
    "tokenization_*.py",
)
DESCRIPTION = (SETTINGS, "ranker.json", CARD, RECIPE, METRICS, ENVIRONMENT, "eval.jsonl")
WHOLE_CATALOG = (f"{CATALOG}/*",)  # includes the semantic IDs of users, if there are any
ITEMS = (f"{CATALOG}/catalog.json", f"{CATALOG}/items.parquet")
OF_PRIOR = (PRIOR, CHOICE)
# A push deletes these files from the repository if it does not upload them again.
REPLACED = (*WHOLE_CATALOG, *OF_PRIOR)
# Section of the card of a model whose prompts contain a semantic ID of the user.
WITHOUT_USERS = """
## The semantic IDs of users are not included

The model's prompts contain a semantic ID of the user. These IDs are never published, but the dataset folder that the
model was trained on contains them. To use the model, pass this folder as `catalog=` of `from_pretrained`, or as
`--dataset` of `trl-rec recommend` and `trl-rec serve`.
"""
# Further files of a checkpoint. They are needed to resume from it, and are pushed if `hub_strategy` is `checkpoint` or
# `all_checkpoints`.
RESUME = (
    MARK,
    "trainer_state.json",
    "optimizer*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "latest",
    "global_step*/*",
    "optimizer_*/*",
    "pytorch_model_fsdp_*/*",
)


def files_of(folder: Path, patterns: Sequence[str]) -> list[str]:
    """Returns the files of a folder that match any of the patterns, as relative paths, sorted.

    Checkpoints in the folder are left out, and so are hidden files and folders, which a killed run may have left
    behind.
    """
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    paths = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    names = [path.as_posix() for path in paths if not path.parts[0].startswith("checkpoint-")]
    return sorted(name for name in names if any(_matches(name, pattern) for pattern in patterns))


def copy_published(
    folder: str | Path,
    copy: str | Path,
    *,
    include_catalog: bool = False,
    include_prior: bool = False,
    link: bool = False,
) -> list[str]:
    """Copies those files of a run folder or checkpoint that may be published, and returns their names.

    The semantic IDs of users are never copied. If prompts contain them, or if the catalogue is left out, the model
    card says what is missing, and how to load the model nevertheless.

    Args:
        folder (`str` or `Path`): The run folder or checkpoint.
        copy (`str` or `Path`): An existing empty folder.
        include_catalog (`bool`, *optional*, defaults to `False`): Whether to copy the catalogue in any case. By
            default, it is copied only if the recorded licence of the data allows redistribution.
        include_prior (`bool`, *optional*, defaults to `False`): Whether to copy the prior. If not, the settings in the
            copy do not mention a prior.
        link (`bool`, *optional*, defaults to `False`): As in [`copy_files`].
    """
    folder, copy = Path(folder), Path(copy)

    # 1. Copy the files.
    has_catalog = (folder / CATALOG / "catalog.json").is_file()
    with_catalog = has_catalog and (include_catalog or allows_redistribution(recorded_license(folder)))
    patterns = [*WEIGHTS, *TOKENIZER, *DESCRIPTION]
    patterns += ITEMS if with_catalog else ()
    patterns += OF_PRIOR if include_prior else ()
    patterns += RESUME if folder.name.startswith("checkpoint-") else ()
    names = files_of(folder, patterns)
    copy_files(folder, copy, names, link=link)

    # 2. If the prior is not copied, remove it from the copied settings. Log what was left out. The model card mentions
    # a missing catalogue and missing semantic IDs of users, but not a missing prior.
    if not include_prior:
        drop_run_prior(copy)
        if (folder / PRIOR).is_file():
            logger.info("the prior is not published; to publish it as well, set include_prior")
    sections = ""
    if has_catalog and not with_catalog:
        why = _why_without_catalog(recorded_license(folder))
        logger.info("the catalogue is not published, because %s; to publish it as well, set include_catalog", why)
        sections += _without_catalog_text(why)
    if names_users(folder):
        logger.info(
            "the semantic IDs of users are never published; to load the published model, pass the dataset folder that "
            "it was trained on as catalog= of from_pretrained"
        )
        sections += WITHOUT_USERS
    if CARD in names and sections:
        write_text(copy / CARD, (folder / CARD).read_text(encoding="utf-8") + sections)
    return names


def announce_deleted(copy: Path, in_repo: Sequence[str]) -> None:
    """Logs which files in the repository the next push will delete.

    Args:
        copy: The folder that is pushed.
        in_repo: The names of all files that are in the repository now.
    """
    deleted = [name for name in in_repo if any(_matches(name, pattern) for pattern in REPLACED)]
    deleted = [name for name in deleted if not (copy / name).is_file()]
    if deleted:
        logger.warning(
            "this push deletes %s; earlier commits of the repository still contain these files (if they must not be "
            "public, HfApi().super_squash_history(repo_id) of huggingface_hub removes all earlier commits)",
            ", ".join(sorted(deleted)),
        )


def recorded_license(folder: str | Path) -> str | None:
    """Returns the licence that the catalogue of a run folder records, or None."""
    try:
        card = json.loads((Path(folder) / CATALOG / "catalog.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    license = card.get("license") if isinstance(card, dict) else None
    return license if isinstance(license, str) else None


def copy_files(folder: Path, copy: Path, names: list[str], *, link: bool = False) -> None:
    """Copies files into another folder.

    With `link`, files become hard links if the file system supports them, so that large weights take neither time nor
    space. Linked files must not be changed, because that would also change the originals.
    """
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            if not link:
                raise OSError
            os.link(folder / name, copy / name)
        except OSError:
            shutil.copyfile(folder / name, copy / name)


def _why_without_catalog(license: str | None) -> str:
    """Returns why the catalogue is left out, as the end of a sentence."""
    return "the licence of the data is not recorded" if license is None else f"the licence of the data is {license!r}"


def _without_catalog_text(why: str) -> str:
    """Returns the section of a model card that says why the catalogue is missing, and what to do."""
    return "\n".join(
        [
            "",
            "## The catalogue is not included",
            "",
            f"It was left out, because {why}. To use the model, run `trl-rec prepare` on the data that the model was",
            "trained on, and pass the dataset folder as `catalog=` of `from_pretrained`, or as `--dataset` of",
            "`trl-rec recommend` and `trl-rec serve`.",
            "",
        ]
    )


def _matches(name: str, pattern: str) -> bool:
    """Returns whether a relative path matches a pattern. The parts between slashes are compared one by one."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
