"""Exports a run folder: as a Hugging Face model without PEFT, or to the Hugging Face hub."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = ["export_merged", "export_published", "push_run"]

if TYPE_CHECKING:
    from trl_rec.serving.exports.hub import export_published, push_run
    from trl_rec.serving.exports.merged import export_merged
else:
    __getattr__, __dir__ = lazy_names(__name__, {"hub": ["export_published", "push_run"], "merged": ["export_merged"]})
