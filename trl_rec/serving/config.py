"""Defines the settings of the server, and reads the token that clients must send."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from trl_rec.ranges import COUNT, NOT_NEGATIVE, POSITIVE, Range


TOKEN = "TRL_REC_TOKEN"  # environment variable with the token that clients must send
LARGEST_K = 1000


@dataclass
class ServingConfig:
    """Settings of [`build_app`] and `trl-rec serve`.

    There is no setting for the token itself, because every user of a machine can read the command lines of all
    processes. The token is read from the environment variable `TRL_REC_TOKEN`, or from `token_file`.
    """

    model: str | None = field(default=None, metadata={"help": "run folder of a trainer, or hub id"})
    lists: str | None = field(
        default=None,
        metadata={
            "help": "serve the lists in this file (written by trl-rec recommend --output) instead of running a model; "
            "the catalogue is read from --model or --dataset"
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "dataset folder with the users' histories, for requests that give a user id instead of a history"
        },
    )
    prior: Literal["saved", "none"] = field(
        default="saved", metadata={"help": "saved: use the prior of the run folder, if it has one; none: use no prior"}
    )
    device: str | None = field(
        default=None, metadata={"help": "device of the model; by default, an accelerator if there is one"}
    )
    dtype: str | None = field(
        default=None, metadata={"help": "data type of the weights; by default, the type in which they were saved"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0 for all networks"})
    port: Annotated[int, Range(0, 65535, whole=True)] = field(
        default=8000, metadata={"help": "port to listen on; 0 for any free port"}
    )
    token_file: str | None = field(
        default=None,
        metadata={
            "help": "file with the token that clients must send; by default, the token in the environment variable "
            f"{TOKEN}, if it is set"
        },
    )
    reload: bool = field(
        default=False,
        metadata={
            "help": "watch the run folder (or the file of --lists) for changes; while a new version is loaded, "
            "requests are served from the old one"
        },
    )
    reload_seconds: Annotated[float, POSITIVE] = field(
        default=2.0, metadata={"help": "seconds between two checks of the run folder (or the file of --lists)"}
    )
    log_lists: str | None = field(
        default=None,
        metadata={
            "help": "folder of log files, one per day, in which every recommended list is recorded with its request "
            "id and the name of the run"
        },
    )
    batch_size: Annotated[int, COUNT] = field(default=32, metadata={"help": "largest number of requests per batch"})
    batch_ms: Annotated[float, NOT_NEGATIVE] = field(
        default=5.0, metadata={"help": "longest time to wait for further requests of a batch, in milliseconds"}
    )
    max_queue: Annotated[int, COUNT] = field(
        default=256, metadata={"help": "largest number of waiting requests; further requests get the status 503"}
    )
    max_k: Annotated[int, Range(1, LARGEST_K, whole=True)] = field(
        default=LARGEST_K, metadata={"help": "largest k that a request may ask for"}
    )
    max_body: Annotated[int, COUNT] = field(default=262_144, metadata={"help": "largest body of a request, in bytes"})
    body_seconds: Annotated[float, POSITIVE] = field(
        default=10.0, metadata={"help": "longest time for a client to send the body of a request, in seconds"}
    )
    stop_seconds: Annotated[int, COUNT] = field(
        default=30,
        metadata={"help": "longest time to finish accepted requests after a signal to stop, in seconds"},
    )

    def __post_init__(self) -> None:
        if self.lists is None and self.model is None:
            raise ValueError(
                "there is nothing to serve; give --model RUN_FOLDER, or give --lists FILE together with either "
                "--model or --dataset"
            )
        if self.lists is not None and self.model is None and self.dataset is None:
            raise ValueError("--lists needs a catalogue; give --model RUN_FOLDER or --dataset FOLDER as well")


def read_token(config: ServingConfig) -> bytes | None:
    """Returns the token that clients must send, or None if there is none.

    Raises `ValueError` if the token cannot be read or used.
    """
    if config.token_file is not None:
        try:
            text = Path(config.token_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the token cannot be read from {config.token_file}: {error}") from error
        place = config.token_file
    elif TOKEN in os.environ:
        text = os.environ[TOKEN]
        place = f"the variable {TOKEN}"
    else:
        return None

    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"the token in {place} is empty or unusable; write printable ASCII characters without spaces")
    return token.encode()
