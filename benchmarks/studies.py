"""What the studies share: options for small models on a CPU, and saved results.

The studies are `*_arms.py`, `published.py` and `targets.py`. A study compares arms over several seeds and takes hours.
Each result is saved, so the same call resumes an interrupted study.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_rec.files import write_text


# Trainer options.
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
    """The JSON in `path`. If there is no such file, calls `make` and saves its result first."""
    if not path.is_file():
        write_text(path, json.dumps(make()))
    return json.loads(path.read_text())
