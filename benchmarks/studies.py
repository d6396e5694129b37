"""What the studies share (`*_arms.py`, `targets`): how small models train on a CPU, and work that is kept.

A study compares arms over several seeds in hours; a call that was interrupted goes on with what the calls before it
kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_rec.files import write_text


# Of a trainer's configuration.
SMALL: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 128,
    "eval_strategy": "steps",
    "eval_ks": [10],
    "report_to": "none",
    "disable_tqdm": True,
    "activation_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
}


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What the file holds; where there is none, what `make` returns, as JSON takes it, which is then written, whole or
    not at all."""
    if not path.is_file():
        write_text(path, json.dumps(make()))
    return json.loads(path.read_text())
