"""Marks complete checkpoints, and finds the newest complete checkpoint to resume from.

The mark is a JSON file called `complete`, which is written after all other files are on the disk. It contains the
fingerprint of the run (see `fingerprint.py`), the sharding and the number of processes, and the size and a hash of
each file that is read on resume. Files that were removed, cut short or replaced are therefore detected before anything
is loaded. Earlier versions wrote an empty mark. For checkpoints of these versions, only the presence and the format of
the files can be checked.

The run folders of ALRO's rating stage and of the baseline `sequence` get a mark too, once their model is saved.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trl_rec.files import sync_folder, write_json
from trl_rec.trainer.base.saving.fingerprint import as_json, difference


MARK = "complete"
# Patterns of the files that are read on resume, in a checkpoint and its subfolders. Other files may be changed or
# deleted.
READ = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.index.json",
    "trainer_state.json",
    "adapter_config.json",
    "latest",  # DeepSpeed's
    "*.distcp",  # FSDP's
    ".metadata",
)
NOT_READ = ("training_args.bin",)  # files that match a pattern but are not read on resume
# Parts of a complete checkpoint. Messages use the keys as names. Each part needs a file that matches one of its
# patterns.
PARTS: dict[str, tuple[str, ...]] = {
    "weights": ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "*_model_states.pt", "*.distcp"),
    "optimizer state": ("optimizer.pt", "optimizer.bin", "*_optim_states.pt", "optimizer_*/*"),
    "state of the learning rate scheduler": ("scheduler.pt", "*_model_states.pt"),
    "random state": ("rng_state*.pth",),
    "trainer state": ("trainer_state.json",),
}
# A file of up to NUM_BLOCKS * BLOCK bytes is hashed completely. Of a larger file, 64 or 65 evenly spaced blocks are
# hashed. These blocks suffice to recognise a file of another run, because such files differ nearly everywhere.
NUM_BLOCKS = 64
BLOCK = 16 * 1024  # bytes
logger = logging.getLogger(__name__)


class Mark(NamedTuple):
    """The content of a mark.

    Args:
        run (`Mapping[str, Any]`): The fingerprint of the run.
        launch (`Mapping[str, Any]`): The sharding and the number of processes.
        files (`Mapping[str, list]`): The size and hash of each file that is read on resume.
    """

    run: Mapping[str, Any]
    launch: Mapping[str, Any]
    files: Mapping[str, list[Any]]


def write_mark(folder: Path, run: Mapping[str, Any], launch: Mapping[str, Any]) -> None:
    """Waits until all files of a checkpoint are on the disk, then marks it as complete.

    Args:
        folder: The checkpoint, or a run folder with a finished model.
        run: The fingerprint of the run.
        launch: The sharding and the number of processes.
    """
    sync_folder(folder)
    files = {path.relative_to(folder).as_posix(): _state_of(path) for path in _read_files(folder)}
    write_json(folder / MARK, as_json({"run": run, "launch": launch, "files": files}))


def read_mark(folder: Path) -> Mark | None:
    """Reads the mark of a checkpoint. Returns None if there is no mark.

    For an empty mark, which earlier versions wrote, all fields are empty.
    """
    path = folder / MARK
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text or "{}")
        return Mark(*(dict(content.get(name, {})) for name in Mark._fields))
    except (ValueError, AttributeError, TypeError):
        return Mark({}, {}, {MARK: []})  # so that `find_changed` reports the mark itself as changed


def find_damage(folder: Path, mark: Mark) -> str | None:
    """Describes what is wrong with a checkpoint, for messages. Returns None if the checkpoint is intact."""
    changed = find_changed(folder, mark)
    if changed is not None:
        return changed
    for part, patterns in PARTS.items():
        if not any(_matching(folder, patterns)):
            return f"no file contains its {part}"
    return None if mark.files else _find_broken(folder)


def find_changed(folder: Path, mark: Mark) -> str | None:
    """Describes the first file that is missing or has changed since the mark was written.

    Returns None if all files are unchanged.
    """
    for name, state in mark.files.items():
        path = folder / name
        if not path.is_file():
            return f"the file {name} is missing"
        if _state_of(path) != state:
            return f"the file {name} has changed since it was written"
    return None


def check_same_run(folder: Path, mark: Mark, run: Mapping[str, Any], launch: Mapping[str, Any]) -> None:
    """Raises `ValueError` if the checkpoint belongs to another run, or if its sharding does not fit this launch."""
    # 1. Compare the runs.
    different = difference(mark.run, as_json(run))
    if different is not None:
        raise ValueError(
            f"{folder} belongs to a run that differs in {different}; a resumed run may only change epochs, max_steps "
            "and settings of logging, saving, evaluation, speed and memory; undo the change, or choose another "
            "output_dir"
        )
    if not mark.run:
        logger.warning(
            "%s does not record which run wrote it; it is read without checking that it belongs to this run", folder
        )

    # 2. Compare the launches. Sharded files can only be read by as many processes as wrote them. Other files can be
    # read by any number of processes.
    different = difference(mark.launch, as_json(launch))
    if different is None:
        return
    if {one.get("sharding") for one in (mark.launch, launch)} != {"none"}:
        raise ValueError(
            f"{folder} was written by a launch that differs in {different}; resuming with another launch is possible "
            "only if neither launch is sharded, so launch the run as before"
        )
    logger.warning(
        "%s was written by a launch that differs in %s, so dropout will draw other random numbers", folder, different
    )


def newest_complete(output_dir: str | Path) -> Path | None:
    """Returns the newest complete checkpoint, or None. Warns about newer checkpoints that are not complete.

    Raises `ValueError` if there are marked checkpoints but each of them is damaged. If the function returned None
    instead, the run would start from scratch and replace these checkpoints.
    """
    # Return the first intact checkpoint, and collect what is wrong with the newer ones.
    damages = {}
    for folder in checkpoints(output_dir):
        mark = read_mark(folder)
        damage = "it was not written completely" if mark is None else find_damage(folder, mark)
        if damage is None:
            return folder
        logger.warning("%s is skipped: %s", folder, damage)
        if mark is not None:
            damages[folder] = damage

    if damages:
        folder, damage = next(iter(damages.items()))
        raise ValueError(
            f"{output_dir} contains no complete checkpoint to resume from: {folder} is damaged ({damage}); to start "
            "from scratch, set overwrite instead of resume_from_checkpoint, or choose another output_dir"
        )
    return None


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Returns all checkpoints in a run folder, complete or not, newest first."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(folders, key=_step, reverse=True)


def _step(folder: Path) -> int:
    """Returns the training step at which a checkpoint was saved."""
    return int(folder.name.split("-")[1])


def _read_files(folder: Path) -> Iterator[Path]:
    """Yields the files that are read when a checkpoint or run folder is loaded, except checkpoints in a run folder."""
    for path in _matching(folder, READ):
        in_checkpoint = any(part.startswith("checkpoint-") for part in path.relative_to(folder).parts)
        if path.name not in NOT_READ and not in_checkpoint:
            yield path


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """Yields the files in a folder and its subfolders that match any of the patterns."""
    found = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    return iter(sorted(found))


def _state_of(path: Path) -> list[Any]:
    """Returns the size of a file and a hash of its content, or of evenly spaced blocks if it is large."""
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    step = max(size // NUM_BLOCKS, BLOCK)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return [size, digest.hexdigest()]


def _find_broken(folder: Path) -> str | None:
    """Describes the first file of a checkpoint that cannot be opened, or returns None. Tensors are not loaded."""
    for path in _read_files(folder):
        check = CHECKS.get(path.suffix)
        try:
            if check is not None:
                check(path)
        except Exception as error:  # each format raises different errors
            return f"{path.relative_to(folder).as_posix()} cannot be read ({error})"
    return None


def _check_safetensors(path: Path) -> None:
    """Raises an error if the header of a safetensors file cannot be read."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        file.keys()


def _check_zip(path: Path) -> None:
    """Raises an error if a file is not a complete ZIP archive, which is the format of `torch.save`."""
    with zipfile.ZipFile(path) as file:
        file.namelist()


def _check_json(path: Path) -> None:
    """Raises an error if a file does not contain JSON."""
    json.loads(path.read_text(encoding="utf-8"))


# Maps the suffix of a file to the function that checks it.
CHECKS: dict[str, Callable[[Path], None]] = {
    ".safetensors": _check_safetensors,
    ".pt": _check_zip,
    ".pth": _check_zip,
    ".json": _check_json,
}
