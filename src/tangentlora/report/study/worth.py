"""What the certified answer is worth: held-out accuracy and wall time beside the usual baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tangentlora.report.parsing import Number
from tangentlora.report.study.markdown import spread, table
from tangentlora.report.study.reading import Seconds
from tangentlora.report.study.results import Case, Cell, Group, Study
from tangentlora.report.study.series import Mean, mean_of
from tangentlora.report.wording import ABSENT, listing, plain

BASELINES = {
    "zero-shot": "zero-shot",
    "logistic-regression": "logistic regression",
    "peft-lora": "PEFT LoRA, AdamW",
}
LINEARISED, REAL = "certified, linearised", "certified, real network"

_EQUAL = 1e-9
"""Accuracies nearer than this are equal: they are counts over the same number of examples."""


@dataclass(frozen=True)
class Method:
    """One column: a method's test accuracy and its wall time in seconds on one case."""

    name: str
    score: Callable[[Case], Number]
    seconds: Callable[[Case], Number]


def chosen(case: Case) -> Cell | None:
    """Return the certified cell whose λ the dev set chooses, None where that cannot be said.

    The rule is the highest dev accuracy of the linearised network, then the lower dev loss, then the larger
    λ. A single certified cell needs no dev set.
    """
    cells = [cell for cell in case.cells if cell.variant == "certified" and cell.objective is not None]
    if len(cells) == 1:
        return cells[0]
    scored = [cell for cell in cells if cell.linearised.dev_accuracy is not None]
    return max(scored, key=_preference, default=None)


def worth_table(study: Study, timings: Mapping[str, Seconds]) -> str:
    """Return held-out accuracy per task, mean ± std over seeds, and the mean wall time of each method.

    The row of means gives each task the same weight. The time of the certified answer is that of linearising
    and of all its λ. `holds k/n` marks certified answers that do not all hold on the real network. Empty
    where no certified answer or no baseline has a score.
    """
    methods = _methods(study, timings)
    if len(methods) < 3:
        return ""
    rows, means = [], []
    for group in study.tasks:
        lams = sorted({cell.lam for case in group.cases if (cell := chosen(case)) and cell.lam is not None})
        scores = [mean_of(map(method.score, group.cases)) for method in methods]
        means.append(scores)
        words = [spread(s) + _mark(method, group) for s, method in zip(scores, methods, strict=True)]
        rows.append([group.label, listing([plain(lam) for lam in lams]) or ABSENT, *words])
    if len(rows) > 1:
        columns = [_over_tasks(column) for column in zip(*means, strict=True)]
        rows.append(["mean over tasks", "", *columns])
    seconds = [mean_of(map(method.seconds, study.cases)) for method in methods]
    if any(seconds):
        rows.append(
            ["mean seconds", "", *(ABSENT if s is None else plain(float(f"{s.mean:.3g}")) for s in seconds)]
        )
    return table(["test accuracy", "λ by dev set", *(method.name for method in methods)], rows)


def _mark(method: Method, group: Group) -> str:
    """Return how many of the certified answers hold on the real network, where not all do."""
    cells = [cell for case in group.cases if (cell := chosen(case)) and cell.standing]
    held = sum(cell.standing is not None and cell.standing.holds for cell in cells)
    return f", holds {held}/{len(cells)}" if method.name == REAL and held < len(cells) else ""


def wins_table(study: Study) -> str:
    """Return how often the certified answer is better, equal and worse, over every task and seed.

    Differences are those of test accuracy in percentage points, mean ± std over the cases. Empty where
    `worth_table` is.
    """
    methods = _methods(study, {})
    ours = [method for method in methods if method.name in (LINEARISED, REAL)]
    rows = []
    for ours_one in ours:
        for other in [method for method in methods if method not in ours]:
            pairs = [(ours_one.score(case), other.score(case)) for case in study.cases]
            differences = [a - b for a, b in pairs if a is not None and b is not None]
            better, worse = sum(d > _EQUAL for d in differences), sum(d < -_EQUAL for d in differences)
            counts = [better, len(differences) - better - worse, worse]
            points = spread(mean_of(100 * d for d in differences), "{:.1f}".format)
            rows.append([f"{ours_one.name} against {other.name}", *map(str, counts), points])
    return (
        table(["over all tasks and seeds", "better", "equal", "worse", "difference, points"], rows)
        if rows
        else ""
    )


def _methods(study: Study, timings: Mapping[str, Seconds]) -> list[Method]:
    """Return the columns that have a score anywhere, the baselines first."""

    def baseline(variant: str, name: str) -> Method:
        def cell(case: Case) -> Cell | None:
            return next((cell for cell in case.cells if cell.variant == variant), None)

        def score(case: Case) -> Number:
            found = cell(case)
            return None if found is None else found.real.test_accuracy

        def seconds(case: Case) -> Number:
            found = cell(case)
            return (
                None
                if found is None or case.name not in timings
                else timings[case.name].cells.get(found.slug)
            )

        return Method(name, score, seconds)

    def certified_seconds(case: Case) -> Number:
        slugs = [cell.slug for cell in case.cells if cell.variant == "certified"]
        if case.name not in timings or not slugs:
            return None
        spent = [timings[case.name].linearise, *(timings[case.name].cells.get(slug) for slug in slugs)]
        known = [seconds for seconds in spent if seconds is not None]
        return sum(known) if len(known) == len(spent) else None

    def linearised(case: Case) -> Number:
        cell = chosen(case)
        return None if cell is None else cell.linearised.test_accuracy

    def real(case: Case) -> Number:
        cell = chosen(case)
        return None if cell is None else cell.real.test_accuracy

    usual = [baseline(variant, name) for variant, name in BASELINES.items()]
    usual = [method for method in usual if any(method.score(case) is not None for case in study.cases)]
    ours = [Method(LINEARISED, linearised, certified_seconds), Method(REAL, real, certified_seconds)]
    ours = [method for method in ours if any(method.score(case) is not None for case in study.cases)]
    return [*usual, *ours] if usual and ours else []


def _preference(cell: Cell) -> tuple[float, float, float]:
    loss = cell.linearised.dev_loss
    return (
        cell.linearised.dev_accuracy or 0.0,
        float("-inf") if loss is None else -loss,
        cell.lam or 0.0,
    )


def _over_tasks(scores: tuple[Mean | None, ...]) -> str:
    """Return the mean of the tasks' means, a dash where a task is missing: other columns have it."""
    known = [score.mean for score in scores if score is not None]
    return f"{sum(known) / len(known):.3f}" if len(known) == len(scores) else ABSENT
