"""From a run folder to what people read: a table with a verdict, figures, one HTML page and a model card."""

from __future__ import annotations

from tangentlora.report.card import write_card
from tangentlora.report.figures import write_figures
from tangentlora.report.folder import RunFolder
from tangentlora.report.page import write_report
from tangentlora.report.table import comparison_table
from tangentlora.report.verdict import headline, verdict

__all__ = [
    "RunFolder",
    "comparison_table",
    "headline",
    "verdict",
    "write_card",
    "write_figures",
    "write_report",
]
