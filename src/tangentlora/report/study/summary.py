"""A study's tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tangentlora.report.columns import wrapped
from tangentlora.report.study.reading import Seconds, read_study, read_timings
from tangentlora.report.study.results import Study
from tangentlora.report.study.tables import certificates_table, claims_table, epochs_table, published_table
from tangentlora.report.study.worth import wins_table, worth_table
from tangentlora.report.wording import listing, plain


def tables_of(study: Study, timings: Mapping[str, Seconds]) -> dict[str, str]:
    """Return the study's tables by name, without those that have nothing to show."""
    tables = {
        "claims": claims_table(study),
        "epochs": epochs_table(study),
        "certificates": certificates_table(study),
        "worth": worth_table(study, timings),
        "wins": wins_table(study),
        "published": published_table(study),
    }
    return {name: text for name, text in tables.items() if text}


def study_summary(folder: Path) -> str:
    """Return the title and every table as plain text; raises `InputError` where the folder cannot be read."""
    study = read_study(folder)
    seeds = {case.seed for case in study.cases}
    cells = sum(len(case.cells) for case in study.cases)
    count = f"{_count(len(study.tasks), 'task')}, {_count(len(seeds), 'seed')}, {_count(cells, 'cell')}."
    lams = f" λ = {listing([plain(lam) for lam in study.lams])}." if study.lams else ""
    heading = f"{study.title}: {count}{lams}"
    return (
        "\n".join([*_failing(study), heading, "", *tables_of(study, read_timings(folder)).values()]).rstrip()
        + "\n"
    )


def _failing(study: Study) -> list[str]:
    """Say first how many answers do not hold on the real network, of those that were put to it."""
    asked = [cell.standing for case in study.cases for cell in case.cells if cell.standing is not None]
    failing = sum(not standing.holds for standing in asked)
    if not failing:
        return []
    return [
        *wrapped(
            f"{failing} of the {len(asked)} answers that were put to the real network do not hold there: use "
            "a larger λ, and read the real network's own scores."
        ),
        "",
    ]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
