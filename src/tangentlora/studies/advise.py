"""Which rank does LoRA need on this data? The rules, the optimum, and runs that are held against it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tangentlora.belongs import LORA
from tangentlora.problem.ranks import ranks as numerical_ranks
from tangentlora.report.columns import WIDTH, aligned, wrapped
from tangentlora.report.wording import ABSENT, at_most, listing, number, plain, tolerance as in_words
from tangentlora.solvers.certified import Certified
from tangentlora.studies.limits import require_ranks
from tangentlora.studies.prepare import prepare
from tangentlora.studies.run import VISIBLE_RANK
from tangentlora.studies.settings import Settings
from tangentlora.studies.trials import trial
from tangentlora.theory.certificate import Certificate, certify
from tangentlora.theory.rank_bound import RankBound, rank_bound
from tangentlora.theory.rank_reduction import reduce_rank
from tangentlora.theory.rank_rules import RankRule, arrived, proved_distance, proved_height, rank_rules

RANKS = (1, 2, 4, 8, 16)

_SHARP = 1e-9  # of the optimum: the bound on all optima's ranks closes with the root of the gap


@dataclass(frozen=True)
class RankRun:
    """One LoRA run: the rank it was given and the ranks it ended with, and how far it is from the optimum.

    `above` ≤ (P − min P) / max(1, P) ≤ `within`, both proved. `used` counts singular values above a
    thousandth of the largest.
    """

    rank: int
    status: str
    epochs: int
    above: float
    within: float
    used: dict[str, int]
    certificate: Certificate


@dataclass(frozen=True)
class Advice:
    """What is known of the rank that LoRA needs at this λ on these examples.

    `optimum` certifies the solver's answer and `reduced` the same answer after Theorem 1; `bound` holds for
    every optimum. `data_check` says what was seen of the data.
    """

    optimum: Certificate
    reduced: Certificate
    bound: RankBound
    rules: tuple[RankRule, ...]
    runs: tuple[RankRun, ...]
    data_check: dict[str, Any]

    @property
    def rank(self) -> int | None:
        """The least rank whose run is proved to have reached the optimum within the tolerance, if any."""
        return arrived(self.optimum, {run.rank: run.certificate for run in self.runs})

    def sentence(self) -> str:
        """Return the advice in a few sentences, each of them proved."""
        rank, tolerance = self.rank, in_words(self.optimum.tolerance)
        if rank is None:
            tried = listing([run.rank for run in self.runs])
            said = f"No run (rank {tried}) is proved to be within the tolerance {tolerance} of the optimum."
        else:
            within = next(run.within for run in self.runs if run.rank == rank)
            said = (
                f"Rank {rank} is enough: its run is proved to be within {_within(within)} (tolerance "
                f"{tolerance}) of the global optimum."
            )
            smaller = [run for run in self.runs if run.rank < rank]
            tried = listing([run.rank for run in smaller])
            if smaller and all(run.above > self.optimum.tolerance for run in smaller):
                said += f" The runs at smaller ranks ({tried}) are proved to be farther away."
            elif smaller:
                said += f" No run at a smaller rank ({tried}) is proved to be."
        if self.reduced.certified:
            known = max(self.reduced.ranks.values())
            said += f" One optimum has rank {known} in its largest layer, so rank {known} can express it."
        else:
            said += f" The certified solver itself fell short. {self.reduced.sentence()}"
        return f"{said} {self.bound.sentence()}"

    def table(self) -> str:
        """Return runs, optimum and rules as text, at most 100 wide, with the sentences below."""
        head = ("rank", "objective", "within", "rank used", "epochs", "status")
        runs = aligned([head, *(_row(run) for run in self.runs)])
        optimum = (
            f"Optimum at λ = {plain(self.optimum.lam)}: objective {number(self.optimum.objective)}, ranks "
            f"{_ranks(self.optimum.ranks)}; after Theorem 1 {_ranks(self.reduced.ranks)}; every optimum has "
            f"at most {_ranks(self.bound.ranks)}."
        )
        rules = [line for rule in self.rules for line in _rule(rule)]
        parts = [*runs, "", *wrapped(optimum), "", "rank  rule", *rules, ""]
        return "\n".join([*parts, *wrapped(self.sentence())])

    def describe(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {"rank": self.rank, "sentence": self.sentence()} | asdict(self)


def advise(settings: Settings, ranks: Sequence[int] = RANKS, *, progress: bool = False) -> Advice:
    """Linearise, solve for the certified optimum, train LoRA at the ranks, and hold every run against it.

    LoRA is trained by the settings' solver if that is `sgd`, `adamw` or `lbfgs`, else by `lbfgs`, which comes
    to rest soonest. A rank above the smaller side of an adapted matrix is left out, and so are held-out
    examples, which have no say in the rank.
    Raises InputError for no ranks or one below 1, for λ = 0, and as `prepare` does.
    """
    require_ranks(ranks)
    method = settings.solver if settings.solver in LORA else "lbfgs"
    settings.solved_by("certified")  # which refuses λ = 0 before the work
    # the least rank is the one that has to fit
    chosen = settings.solved_by(method, rank=min(ranks))
    prepared = prepare(chosen, test=False, progress=progress)
    problem = prepared.problem
    most = min(min(shape) for shape in problem.jacobian.shapes.values())
    possible = [r for r in sorted(set(ranks)) if r <= most]
    trials = [trial(replace(prepared.settings, rank=r)) for r in possible]
    for each in trials:
        each.solver.check(problem)
    best = Certified(tolerance=min(settings.tolerance, _SHARP)).solve(problem, progress=progress)
    optimum = certify(problem, best, settings.tolerance)
    runs = []
    for rank, each in zip(possible, trials, strict=True):
        solution = each.solver.solve(problem, progress=progress)
        certificate = certify(problem, solution, settings.tolerance)
        above, within = proved_height(certificate, optimum), proved_distance(certificate, optimum)
        used = numerical_ranks(solution.problem, solution.factors, VISIBLE_RANK)
        runs.append(RankRun(rank, solution.status.name, solution.epochs, above, within, used, certificate))
    reduced = certify(problem, reduce_rank(problem, best.factors), settings.tolerance)
    certificates = {run.rank: run.certificate for run in runs}
    rules = rank_rules(problem, reduced, certificates)
    data = prepared.check.describe()
    return Advice(optimum, reduced, rank_bound(problem, best), rules, tuple(runs), data)


def _row(run: RankRun) -> tuple[str, ...]:
    numbers = (str(run.rank), number(run.certificate.objective), _within(run.within))
    return (*numbers, _ranks(run.used), str(run.epochs), run.status)


def _within(distance: float) -> str:
    return at_most(distance) if math.isfinite(distance) else ABSENT


def _ranks(ranks: dict[str, int]) -> str:
    return "+".join(map(str, ranks.values()))


def _rule(rule: RankRule) -> tuple[str, ...]:
    return (
        f"{ABSENT if rule.rank is None else rule.rank:>4}  {rule.name}",
        *textwrap.wrap(f"if: {rule.assumption}", WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 10),
        *textwrap.wrap(f"proves: {rule.proves}", WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 10),
    )
