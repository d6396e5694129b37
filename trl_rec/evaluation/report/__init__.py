"""Writes a report on runs or on a study, as one self-contained HTML page."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = ["write_report"]

if TYPE_CHECKING:
    from trl_rec.evaluation.report.page import write_report
else:
    __getattr__, __dir__ = lazy_names(__name__, {"page": ["write_report"]})
