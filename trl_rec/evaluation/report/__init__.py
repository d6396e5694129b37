"""Writes one self-contained HTML page on runs or on a study."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = ["write_report"]

if TYPE_CHECKING:
    from trl_rec.evaluation.report.page import write_report
else:
    __getattr__, __dir__ = lazy_names(__name__, {"page": ["write_report"]})
