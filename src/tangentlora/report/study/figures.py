"""The figures of a study, each as SVG and PNG."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tangentlora.report.canvas import Picture, house_style
from tangentlora.report.figures import write_pictures
from tangentlora.report.folder import RunFolder
from tangentlora.report.study.published import published_answers_figure, published_figure
from tangentlora.report.study.ranks import optimality_figure, trade_off_figure
from tangentlora.report.study.reading import read_study
from tangentlora.report.study.results import Study
from tangentlora.report.study.spectra import singular_value_figure
from tangentlora.report.study.training import accuracy_figure, distance_figure, loss_figure

NAMES = (
    "loss",
    "distance",
    "accuracy",
    "trade-off",
    "optimality",
    "singular-values",
    "published",
    "published-answers",
)
"""The figures' file names without suffix."""


def write_study_figures(folder: Path) -> list[Path]:
    """Draw every figure that results.json has numbers for into `figures/`, as SVG and PNG.

    The same results give the same bytes. A figure that an earlier run left and that has nothing to show now
    is removed. Returns the paths; raises `InputError` where the folder cannot be read.
    """
    return write_pictures(RunFolder(folder), draw_study(read_study(folder)), NAMES)


def draw_study(study: Study, names: Collection[str] = NAMES) -> list[Picture]:
    """Return the figures of these names in the order of `NAMES`, without those that have nothing to show."""
    figures = (
        loss_figure,
        distance_figure,
        accuracy_figure,
        trade_off_figure,
        optimality_figure,
        singular_value_figure,
        published_figure,
        published_answers_figure,
    )
    with house_style():
        pictures = [draw(study) for name, draw in zip(NAMES, figures, strict=True) if name in names]
    return [picture for picture in pictures if picture is not None]
