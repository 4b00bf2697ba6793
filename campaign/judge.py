"""Hold what the package says of a random problem against extended precision."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from counts import independent_outputs
from extended import Raw, Value, evaluate
from regimes import problem as draw_problem
from tangentlora import Certified, CrossEntropy, Jacobian, Problem, certify
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.losses import Logistic, Loss, Squared
from tangentlora.solvers.solution import Solution, Status
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.theory.certificate import Certificate
from tangentlora.theory.rank_reduction import reduce_rank

LOSSES: dict[str, Loss] = {loss.name: loss for loss in (CrossEntropy(), Logistic(), Squared())}
TOLERANCES = (1e-6, 1e-10)
_DOUBT = 64 * float(np.finfo(np.longdouble).eps)  # of the terms summed: what extended precision leaves


@dataclass
class Verdict:
    """What was found: counts by kind, and a line for each finding that names regime, seed and numbers."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def find(self, kind: str, place: str, said: str) -> None:
        self.counts[kind] += 1
        self.findings.append(f"{kind}: {place}: {said}")

    def __iadd__(self, other: Verdict) -> Verdict:
        self.counts += other.counts
        self.findings += other.findings
        return self


def judge(regime: str, seed: int) -> Verdict:
    """Return what is wrong with the certificates of one random problem; nothing, if all is well."""
    verdict, raw = Verdict(Counter(problems=1)), draw_problem(regime, seed)
    place = f"{regime}, seed {seed}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            _judge(verdict, place, raw, np.random.default_rng(seed))
        except InputError as error:
            verdict.counts["refused"] += 1
            verdict.counts[f"refused in {regime}: {str(error)[:60]}"] += 1
        except Exception as error:
            verdict.find("exception", place, f"{type(error).__name__}: {error}")
    return verdict


def _judge(verdict: Verdict, place: str, raw: Raw, draw: np.random.Generator) -> None:
    stated = state(raw)
    tolerance = float(draw.choice(TOLERANCES))
    solution = Certified(tolerance=tolerance).solve(stated)
    answers = points(stated, solution, draw)
    made = [(name, certify(stated, f, tolerance), _evaluated(raw, f)) for name, f in answers.items()]
    least = min(value.objective for _, _, value in made)
    for name, certificate, value in made:
        verdict.counts["certificates"] += 1
        verdict.counts["certified"] += certificate.certified
        for kind, said in complaints(certificate, value, least):
            verdict.find(kind, f"{place}, {name}", said)
    for kind, said in claims(solution, made[0][1], made[0][2]):
        verdict.find(kind, place, said)
    c = independent_outputs(raw)
    if c is not None:
        verdict.counts["counts of outputs"] += 1
        reduced = reduce_rank(stated, answers["random"])
        for kind, said in miscounts(c, made[0][1].constraints, [u.shape[1] for u, _ in reduced.values()]):
            verdict.find(kind, place, said)


def state(raw: Raw) -> Problem:
    """Return the package's problem of the same arrays."""
    rows = {
        name: LayerRows(torch.from_numpy(x.x), torch.from_numpy(x.g), torch.from_numpy(x.counts))
        for name, x in raw.layers.items()
    }
    return Problem(
        Jacobian(rows), torch.from_numpy(raw.f0), torch.from_numpy(raw.y), LOSSES[raw.loss], raw.lam
    )


def points(stated: Problem, solution: Solution, draw: np.random.Generator) -> dict[str, Factors]:
    """Return the solver's answer and others: zero, near the answer, unbalanced, and at random."""
    found = stated.zero() | solution.factors
    spread = torch.Generator().manual_seed(int(draw.integers(2**31)))

    def normal(like: torch.Tensor, columns: int) -> torch.Tensor:
        return torch.randn(len(like), columns, generator=spread, dtype=torch.float64)

    by, tilt = 10 ** draw.uniform(-10, -1), 10 ** draw.uniform(1, 4)
    size = max((float(u.abs().max()) for u, _ in found.values() if u.numel()), default=1.0)
    return {
        "answer": found,
        "zero": stated.zero(),
        "near": {
            name: (u + by * u.abs().amax() * normal(u, u.shape[1]), v) if u.numel() else (u, v)
            for name, (u, v) in found.items()
        },
        "unbalanced": {name: (u * tilt, v / tilt) for name, (u, v) in found.items()},
        "random": {
            name: (size * normal(u, 2), size * 10 ** draw.uniform(-3, 0.5) * normal(v, 2))
            for name, (u, v) in found.items()
        },
    }


def _evaluated(raw: Raw, factors: Factors) -> Value:
    return evaluate(raw, {name: (u.numpy(), v.numpy()) for name, (u, v) in factors.items()})


def complaints(certificate: Certificate, value: Value, least: Any) -> list[tuple[str, str]]:
    """Return where a certificate says more than is true; `least` is the lowest objective known.

    A violation is a statement that is false: a lower bound above an objective that exists, a gap with its
    margin below the distance to one, an objective outside its margin, a spectral norm below the true one
    beyond what the change of its dual point allows.
    """
    found, c = [], certificate
    numbers = [
        c.objective,
        c.lower_bound,
        c.gap,
        c.rounding,
        c.factored_objective,
        *c.spectral_norms.values(),
    ]
    if not all(map(math.isfinite, numbers)):
        return [("not finite", f"{c}")]
    doubt = _DOUBT * (1 + abs(float(value.objective)))
    if c.lower_bound - c.rounding > least + doubt:
        found.append(("false bound", f"{c.lower_bound!r} - {c.rounding!r} above {least!r}"))
    if c.gap + c.rounding < value.objective - least - doubt:
        found.append(("false gap", f"{c.gap!r} + {c.rounding!r} below {value.objective - least!r}"))
    if c.certified and value.objective - least > c.tolerance * max(1.0, abs(c.objective)) + doubt:
        found.append(("false certificate", f"{value.objective - least!r} from the best known"))
    for name, ours, exact in (
        ("objective", c.objective, value.objective),
        ("factored_objective", c.factored_objective, value.factored),
    ):
        if abs(ours - exact) > c.rounding + doubt:
            found.append(("false number", f"{name} {ours!r} for {exact!r} with rounding {c.rounding!r}"))
    for layer, bound in c.spectral_norms.items():
        exact = value.norms[layer]
        if bound < exact * (1 - 1e-9):
            found.append(("false norm", f"{layer}: {bound!r} below {exact!r}"))
    return found


def claims(solution: Solution, certificate: Certificate, value: Value) -> list[tuple[str, str]]:
    """Return where a solver's status contradicts the certificate of its answer, or its own history."""
    found = []
    if solution.status is Status.GLOBAL_OPTIMUM and not certificate.certified:
        found.append(("contradiction", f"GLOBAL_OPTIMUM beside {certificate.sentence()}"))
    best = min((record.objective for record in solution.history), default=math.inf)
    if float(value.objective) > best + certificate.rounding + certificate.tolerance * max(1.0, abs(best)):
        found.append(("worse than known", f"returned {value.objective!r} after {best!r}"))
    return found


def miscounts(c: int, said: int, ranks: list[int]) -> list[tuple[str, str]]:
    """Return where the number of independent outputs is not c, or reduced ranks do not fit it."""
    found = [] if said == c else [("false count", f"{said} independent outputs, counted {c}")]
    needed = sum(rank * (rank + 1) // 2 for rank in ranks)
    return found + ([("false count", f"ranks {ranks} need {needed} of {c}")] if needed > c else [])
