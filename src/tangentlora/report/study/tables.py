"""Tables of the paper's claims: where each rank ends, how soon, what is proved, and the published loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tangentlora.report.study.markdown import spread, spread_digits, table
from tangentlora.report.study.results import Cell, Group, Study
from tangentlora.report.study.series import mean_of
from tangentlora.report.wording import ABSENT, relative, tolerance

Run = tuple[str, str, int | None]
"""Words, variant and rank of one row."""

_FULL = {"full": "full fine-tuning", "full-plain": "full fine-tuning, plain steps"}
_WORDS = {"lora": "LoRA", "frozen-a": "LoRA, A frozen", "perturbed": "LoRA, perturbed"}


def claims_table(study: Study) -> str:
    """Return the final objective of every run relative to the certified optimum, one column per task.

    Each cell is the mean over seeds of (P − P*)/max(1, |P*|), with the largest in brackets. Below stand what
    the certified optimum has: P*, its rank (the largest among the layers) and the number of constraints.
    Empty where the study has no certified optimum.
    """
    groups = study.groups
    if not _has_optimum(study):
        return ""
    optima = [spread(mean_of(case.optimum for case in g.cases), "{:.4f}".format) for g in groups]
    ranks = [_range(cell.rank_reached for _, cell in g.cells("certified")) for g in groups]
    constraints = [_range(case.constraints for case in g.cases) for g in groups]
    rows = _rows(study, _runs(study), _excess_words)
    rows += [
        ["certified optimum P*", *optima],
        ["its rank, largest layer", *ranks],
        ["constraints", *constraints],
    ]
    return table(["relative excess, mean (largest)", *(group.label for group in groups)], rows)


def epochs_table(study: Study) -> str:
    """Return the epochs to within the study's distance of P*, one column per task.

    The mean ± std is over the seeds that came so near; `never k/n` counts the others. Perturbed runs are left
    out: what they minimise has Π in it and stays above P* by that. Empty where the study has no certified
    optimum.
    """
    if not _has_optimum(study):
        return ""
    head = f"epochs to within {tolerance(study.within)}"
    rows = [
        [name, *(_epochs_words(group.epochs(variant, rank)) for group in study.groups)]
        for name, variant, rank in _runs(study)
        if variant != "perturbed"
    ]
    return table([head, *(group.label for group in study.groups)], rows) if rows else ""


def certificates_table(study: Study) -> str:
    """Return the largest relative gap over the seeds and how many of them are certified, one column per task.

    The last rows say which rank suffices: the smallest that is certified, or ends within the study's distance
    of P*, on every seed; `none` where none of them does.
    """
    groups = study.groups
    runs = [*_runs(study), *([("certified optimum", "certified", None)] if _has(study, "certified") else [])]
    rows = _rows(study, runs, _proof_words)
    if not rows:
        return ""
    if study.ranks():
        near = f"rank that suffices: within {tolerance(study.within)}"
        rows.append(["rank that suffices: certified", *(_suffices(study, g, _certified) for g in groups)])
        rows.append([near, *(_suffices(study, g, lambda c: _within(c, study.within)) for g in groups)])
    return table(["largest relative gap, certified seeds", *(group.label for group in groups)], rows)


def published_table(study: Study) -> str:
    """Return where the published loop ends beside the one that trains with λ, one row per task and rank.

    Empty where the study did not run the published loop.
    """
    ranks = study.ranks("published")
    pairs = [(g, rank) for g in study.groups for rank in ranks if g.cells("published", rank)]
    if not pairs:
        return ""
    rows = []
    for group, rank in pairs:
        stated = [cell for _, cell in group.cells("lora", rank)]
        published = [cell for _, cell in group.cells("published", rank)]
        rows.append(
            [
                f"{group.label}, r={rank}",
                *(_mean_excess(cells) for cells in (stated, published)),
                *(spread_digits(mean_of(c.nuclear_norm for c in cells)) for cells in (stated, published)),
                *(
                    spread(mean_of(c.linearised.test_accuracy for c in cells))
                    for cells in (stated, published)
                ),
                spread(mean_of(c.without_f0.test_accuracy for c in published)),
            ]
        )
    head = ["task", "excess, with λ", "excess, published", "norm, with λ", "norm, published"]
    head += ["test accuracy, with λ", "published", "published, without f0"]
    return table(head, rows)


def _runs(study: Study) -> list[Run]:
    runs: list[Run] = [
        (f"{words} r={rank}", variant, rank)
        for variant, words in _WORDS.items()
        for rank in study.ranks(variant)
    ]
    return [*runs, *((words, variant, None) for variant, words in _FULL.items() if _has(study, variant))]


def _has_optimum(study: Study) -> bool:
    return any(case.optimum is not None for group in study.groups for case in group.cases)


def _has(study: Study, variant: str) -> bool:
    return any(cell.variant == variant for case in study.cases for cell in case.cells)


def _rows(study: Study, runs: Iterable[Run], words: Callable[[list[Cell]], str]) -> list[list[str]]:
    return [
        [name, *(words([cell for _, cell in group.cells(variant, rank)]) for group in study.groups)]
        for name, variant, rank in runs
    ]


def _epochs_words(counts: list[int | None]) -> str:
    if not counts:
        return ABSENT
    epochs, missed = mean_of(counts), counts.count(None)
    parts = [] if epochs is None else [spread(epochs, "{:.0f}".format)]
    return ", ".join([*parts, *([f"never {missed}/{len(counts)}"] if missed else [])])


def _excess_words(cells: list[Cell]) -> str:
    excess = mean_of(cell.relative_excess for cell in cells)
    diverged = sum(cell.objective is None for cell in cells)
    parts = []
    if excess is not None:
        many = excess.n > 1
        parts.append(relative(excess.mean) + (f" ({relative(excess.largest)})" if many else ""))
    if diverged:
        parts.append(f"not finite {diverged}/{len(cells)}")
    return ", ".join(parts) or ABSENT


def _mean_excess(cells: list[Cell]) -> str:
    excess = mean_of(cell.relative_excess for cell in cells)
    return ABSENT if excess is None else relative(excess.mean)


def _proof_words(cells: list[Cell]) -> str:
    if not cells:
        return ABSENT
    gap = mean_of(cell.relative_gap for cell in cells)
    certified = f"{sum(cell.certified for cell in cells)}/{len(cells)}"
    return f"{relative(None if gap is None else gap.largest)}, {certified}"


def _suffices(study: Study, group: Group, good: Callable[[Cell], bool]) -> str:
    """Return the smallest rank whose cells are all good, for every seed of the group."""
    for rank in study.ranks():
        cells = [cell for _, cell in group.cells("lora", rank)]
        if len(cells) == len(group.cases) and all(map(good, cells)):
            return str(rank)
    return "none"


def _certified(cell: Cell) -> bool:
    return cell.certified


def _within(cell: Cell, limit: float) -> bool:
    return cell.relative_excess is not None and cell.relative_excess <= limit


def _range(values: Iterable[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return f"{known[0]} to {known[-1]}" if len(known) > 1 else str(known[0]) if known else ABSENT
