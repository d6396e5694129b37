"""`trl-rec export`: writes a run folder as a model that needs no PEFT, or pushes the run to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from trl_rec.scripts.options.parsing import parse, show_progress
from trl_rec.serving.exports import export_merged, export_published, push_run


@dataclass
class ExportArguments:
    """Arguments that select the model to export, the form of the export, and its destination."""

    model: str = field(metadata={"help": "run folder of a trainer"})
    to: Literal["merged", "hub"] = field(
        metadata={
            "help": "merged: a Hugging Face folder with the adapter merged into the model; hub: the files that may be "
            "published, pushed to --repo or written to --output"
        }
    )
    output: str | None = field(default=None, metadata={"help": "folder to create"})
    repo: str | None = field(default=None, metadata={"help": "with --to hub: repository, such as me/my-model"})
    include_catalog: bool = field(
        default=False,
        metadata={"help": "with --to hub: include the catalogue even if the recorded licence does not allow it"},
    )
    include_prior: bool = field(default=False, metadata={"help": "with --to hub: include the prior"})
    private: bool | None = field(default=None, metadata={"help": "with --to hub: whether a new repository is private"})
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "with --to merged: type of the weights, such as bfloat16; if unset, the type of the base model's "
            "weights"
        },
    )


KINDS = (ExportArguments,)


def main(argv: list[str]) -> None:
    """Exports the run folder, and prints where the export is."""
    # 1. Check that no argument is missing, and that every argument that is set has an effect.
    arguments = parse(ExportArguments, argv, "export")
    of_hub = {name: getattr(arguments, name) for name in ("repo", "include_catalog", "include_prior", "private")}
    without_effect = {"dtype": arguments.dtype} if arguments.to == "hub" else of_hub
    for name, value in without_effect.items():
        if value != getattr(ExportArguments, name):  # the default
            raise ValueError(f"--{name} has no effect with --to {arguments.to}; leave it out")
    if arguments.to == "merged" and arguments.output is None:
        raise ValueError("--to merged writes a folder; give --output")
    if arguments.to == "hub" and (arguments.repo is None) == (arguments.output is None):
        raise ValueError("--to hub pushes to --repo, or writes the same files to --output; give one of them")
    if arguments.repo is None and arguments.private is not None:
        raise ValueError("--private has no effect with --output; leave it out")

    # 2. Export.
    show_progress()
    chosen: dict[str, Any] = {name: getattr(arguments, name) for name in ("include_catalog", "include_prior")}
    if arguments.to == "merged":
        export_merged(arguments.model, str(arguments.output), dtype=arguments.dtype or "auto")
        print(f"the merged model is in {arguments.output}; it needs no PEFT")
    elif arguments.repo is None:
        names = export_published(arguments.model, str(arguments.output), **chosen)
        print(f"{arguments.output} contains what --repo would push: {', '.join(names)}")
    else:
        print(f"pushed to {push_run(arguments.model, arguments.repo, private=arguments.private, **chosen)}")
