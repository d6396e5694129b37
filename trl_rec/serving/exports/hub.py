"""Pushes a run folder to the Hugging Face hub, or copies the same files into a local folder, without data about
individual users."""

from __future__ import annotations

from pathlib import Path

from trl_rec.files import atomic_folder, resolved, temporary_folder
from trl_rec.trainer.base.saving.published import REPLACED, announce_deleted, copy_published


def push_run(
    run: str | Path,
    repo: str,
    *,
    include_catalog: bool = False,
    include_prior: bool = False,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Pushes a run folder to the hub, and returns the address of the commit.

    The model, its settings and its card are pushed. Data about individual users is never pushed: interactions,
    semantic IDs of users, and the rankings and metric values of single users. `trainer.push_to_hub` selects files in
    the same way. If the repository contains a catalogue or prior that this push leaves out, the push deletes it, but
    earlier commits still contain it.

    Args:
        run (`str` or `Path`): The run folder. A folder that [`export_merged`] wrote is a run folder too.
        repo (`str`): The repository, such as `"me/my-model"`. It is created if necessary.
        include_catalog (`bool`, *optional*, defaults to `False`): Whether to push the catalogue in any case. By
            default, it is pushed only if the recorded licence of the data allows redistribution.
        include_prior (`bool`, *optional*, defaults to `False`): Whether to push the prior, which consists of counts
            of what users chose.
        private (`bool`, *optional*): Whether a new repository is private. By default, it is public unless the
            default of the organisation is private.
        token (`str`, *optional*): Token of the hub. Defaults to the token that `hf auth login` stored.
    """
    from huggingface_hub import HfApi

    run = _checked(run)
    api = HfApi(token=token)
    with temporary_folder(resolved(run)) as copy:
        copy_published(run, copy, include_catalog=include_catalog, include_prior=include_prior, link=True)
        url = api.create_repo(repo, private=private, exist_ok=True)
        announce_deleted(copy, api.list_repo_files(url.repo_id))
        commit = api.upload_folder(
            repo_id=url.repo_id,
            folder_path=copy,
            commit_message="Push with trl-rec",
            delete_patterns=list(REPLACED),
        )
    return str(commit.commit_url)


def export_published(
    run: str | Path, output: str | Path, *, include_catalog: bool = False, include_prior: bool = False
) -> list[str]:
    """Fills a new or empty folder with the files that [`push_run`] would push, and returns their names.

    Args:
        run, include_catalog, include_prior: As in [`push_run`].
        output (`str` or `Path`): The folder to fill.
    """
    run = _checked(run)
    with atomic_folder(output) as folder:
        return copy_published(run, folder, include_catalog=include_catalog, include_prior=include_prior)


def _checked(run: str | Path) -> Path:
    """Returns the path of a run folder. Raises `ValueError` if it contains no model."""
    run = Path(run)
    if not any((run / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"{run} contains no model; give the output folder of a trl-rec trainer")
    return run
