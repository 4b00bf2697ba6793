"""The figures of a run folder, each as SVG and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tangentlora.report.canvas import Picture, house_style
from tangentlora.report.folder import RunFolder
from tangentlora.report.path_record import read_path
from tangentlora.report.record import Metric, Run

NAMES = ("path", "objective", "distance", "accuracy", "ranks", "singular-values")
"""The figures' file names without suffix."""


def write_figures(folder: RunFolder) -> list[Path]:
    """Draw every figure that the run has numbers for into `figures/`, as SVG and PNG, and return their paths.

    The same run gives the same bytes. Raises `InputError` where the folder cannot be read.
    """
    return write_pictures(folder, draw_folder(folder))


def write_pictures(
    folder: RunFolder, pictures: Sequence[Picture], names: Sequence[str] = NAMES
) -> list[Path]:
    """Write these pictures, and remove those that an earlier run left under the others of these names."""
    for name in set(names) - {picture.name for picture in pictures}:
        for suffix in ("svg", "png"):
            (folder.path / "figures" / f"{name}.{suffix}").unlink(missing_ok=True)
    return [
        path
        for picture in pictures
        for path in (
            folder.write_text(f"figures/{picture.name}.svg", picture.svg),
            folder.write_bytes(f"figures/{picture.name}.png", picture.png),
        )
    ]


def draw_folder(folder: RunFolder) -> list[Picture]:
    """Return the figures of a run folder in the order of the page, the λ path first where there is one."""
    from tangentlora.report.path_figure import path_figure

    run = folder.read_run()
    path = read_path(folder, run)
    with house_style():
        first = [] if path is None else [path_figure(path)]
    return first + draw(run, folder.read_metrics())


def draw(run: Run, metrics: list[Metric]) -> list[Picture]:
    """Return the figures of a run's answers, without those that have nothing to show."""
    from tangentlora.report import answers, curves

    rows = curves.curves_of(run, metrics)
    with house_style():
        pictures = [
            curves.objective_figure(run, rows),
            curves.distance_figure(run, rows),
            curves.accuracy_figure(run, rows),
            answers.rank_figure(run),
            answers.singular_value_figure(run),
        ]
    return [picture for picture in pictures if picture is not None]
