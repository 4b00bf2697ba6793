"""From a study's results.json to what people read: figures, tables and the blocks of a document."""

from __future__ import annotations

from tangentlora.report.study.document import fill, results_blocks
from tangentlora.report.study.figures import write_study_figures
from tangentlora.report.study.summary import study_summary

__all__ = ["fill", "results_blocks", "study_summary", "write_study_figures"]
