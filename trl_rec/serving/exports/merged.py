"""Exports a run folder as a Hugging Face model without PEFT and without quantisation.

The exported folder is a run folder too, with the same catalogue, prior and settings. [`Recommender`] and the verbs
`recommend`, `serve` and `evaluate` of `trl-rec` can therefore read it. `AutoModelForCausalLM` and inference
engines load it as they load any model.
"""

from __future__ import annotations

from pathlib import Path

from trl_rec.decoding.run_folder import local_folder
from trl_rec.files import atomic_folder
from trl_rec.models.merging import load_merged
from trl_rec.trainer.base.saving.published import (
    DESCRIPTION,
    OF_PRIOR,
    TOKENIZER,
    WHOLE_CATALOG,
    copy_files,
    files_of,
)


def export_merged(model: str | Path, output: str | Path, *, dtype: str = "auto") -> Path:
    """Writes a copy of a run folder with the adapter merged into the base model, and returns the path of the copy.

    A model without an adapter is saved as it is. Quantised weights are dequantised in either case. Checkpoints,
    reports and results per user (such as metric values and lists) are not copied. In float32, the copy recommends the
    same lists as the original, except where two scores differ by less than about 3e-5. In bfloat16, merging rounds the
    weights, so more lists can differ.

    Args:
        model (`str` or `Path`): A run folder, or the hub id of a pushed run folder.
        output (`str` or `Path`): The new folder. If it exists already, it must be empty.
        dtype (`str`, *optional*, defaults to `"auto"`): The type of the weights, such as `"bfloat16"`. With `"auto"`,
            it is the type of the base model's saved weights.
    """
    # 1. Check the folders before the model is loaded.
    folder = local_folder(model)
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} already exists; choose another output")

    # 2. Write the model, and copy the other files.
    with atomic_folder(output) as new:
        load_merged(folder, dtype=dtype).save_pretrained(new)
        copy_files(folder, new, files_of(folder, (*TOKENIZER, *DESCRIPTION, *WHOLE_CATALOG, *OF_PRIOR)))
    return output
