"""The duality gap: a number that proves how far an answer is from the global optimum, at any rank.

With a = ∇_z L̂ (N,K), M_t = Σ_ik a_ik J_ik,t and s = min(1, λ / max_t ‖M_t‖₂), the point s·a is feasible for
the dual of min P, so

    P(δ) − min P  ≤  gap = P(δ) − [ s⟨a, f0⟩ − (1/N) Σ_i ℓ_i*(N s a_i) ].

No rank condition enters. Every number is computed here, in float64, from the Jacobian; nothing is taken from
a solver. Derived; docs/theory.md, "The certificate".
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from tangentlora.blocks import Factors, cast
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.problem.proof import prove
from tangentlora.problem.ranks import ranks
from tangentlora.problem.threads import fitting_threads
from tangentlora.solvers.solution import Solution
from tangentlora.theory.distance import Distance


@dataclass(frozen=True)
class Certificate:
    """What is proved of one answer; P(δ) − min P ≤ gap + rounding.

    `spectral_norms` are upper bounds on ‖M_t‖₂, `dual_scale` is s, `ranks` the numerical rank of each δ_t,
    `constraints` the number c of independent outputs on the data (the rank of the tangent kernel; see
    `Problem.constraints`), `rounding` what float64 may have added to or taken from the gap. `factored_gap`
    bounds F(u,v) − min F for the factors as trained, whose penalty is ½(‖u‖² + ‖v‖²).
    """

    objective: float
    lower_bound: float
    gap: float
    relative_gap: float
    rounding: float
    tolerance: float
    certified: bool
    factored_objective: float
    factored_gap: float
    loss: str
    lam: float
    dual_scale: float
    spectral_norms: dict[str, float]
    ranks: dict[str, int]
    constraints: int
    n_examples: int
    n_outputs: int
    dtype: str

    def sentence(self) -> str:
        """Return the verdict, with the gap in the objective's units and against its size, and the tolerance.

        A certified gap that is not small against P is said to be so.
        """
        distance = Distance(self.gap + self.rounding, self.objective)
        if self.certified:
            said = (
                f"Certified: within {distance.said()} of the global optimum (tolerance "
                f"{self.tolerance:.0e}), at total rank {sum(self.ranks.values())}."
            )
            return said if distance.telling else f"{said} {distance.warning()}"
        return (
            f"Not certified: the gap {distance.said()} is above the tolerance {self.tolerance:.0e}; the "
            f"objective is {self.objective:.6g} and no answer of any rank is below {self.lower_bound:.6g}."
        )

    def write(self, path: Path) -> None:
        """Write the certificate as JSON, whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(partial, path)


def read_certificate(path: Path) -> Certificate:
    """Read a certificate back; raises InputError where the file is missing, not JSON, or lacks a field."""
    try:
        values = json.loads(path.read_text())
        return Certificate(**{f.name: _read_field(str(f.type), values[f.name]) for f in fields(Certificate)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"got {path}, which is not a readable certificate ({type(error).__name__}: {error}), expected "
            "the JSON file that fit writes: run fit again"
        ) from error


def _read_field(kind: str, value: Any) -> Any:
    allowed = {"float": (float, int), "int": (int,), "bool": (bool,), "str": (str,)}.get(kind, (dict,))
    if type(value) not in allowed:
        raise TypeError(f"{value!r} is not a {kind}")
    return value


def certify(problem: Problem, solution: Solution | Factors, tolerance: float = 1e-6) -> Certificate:
    """Return the certificate of an answer: certified if gap + rounding ≤ tolerance·max(1, P).

    Takes a Solution or bare factors {name: (u (m,r), v (n,r))}; only the factors are used. Raises InputError
    where they do not fit the problem or give numbers that are not finite, and for a tolerance that is not
    positive.
    """
    factors = solution.factors if isinstance(solution, Solution) else solution
    _check(problem, factors, tolerance)
    with fitting_threads(problem.contrasted.jacobian):
        return _certified(problem, factors, tolerance)


def _certified(problem: Problem, factors: Factors, tolerance: float) -> Certificate:
    factors = problem.zero() | cast(factors, problem.f0)
    z = problem.outputs(factors)
    if not torch.isfinite(z).all():
        raise InputError("got factors whose outputs overflow, expected numbers: lower the learning rate")
    proof = prove(problem, factors, z)
    _require_finite(problem, proof.objective, proof.lower_bound)
    return Certificate(
        objective=proof.objective,
        lower_bound=proof.lower_bound,
        gap=proof.gap,
        relative_gap=proof.gap / max(1.0, abs(proof.objective)),
        rounding=proof.rounding,
        tolerance=tolerance,
        certified=proof.holds(tolerance),
        factored_objective=proof.factored_objective,
        factored_gap=proof.factored_objective - proof.lower_bound,
        loss=problem.loss.name,
        lam=problem.lam,
        dual_scale=proof.dual_scale,
        spectral_norms=proof.spectral_norms,
        ranks=ranks(problem, factors),
        constraints=problem.constraints,
        n_examples=len(z),
        n_outputs=z.shape[1],
        dtype="float64",
    )


def _require_finite(problem: Problem, objective: float, lower_bound: float) -> None:
    """Raise InputError where the loss of the network itself overflows; that of an answer may."""
    broken = not (math.isfinite(objective) and lower_bound < math.inf)
    if broken and not math.isfinite(problem.empirical_loss(problem.f0)):
        raise InputError(
            f"got outputs or labels so large that the objective {objective:g} is no finite number, expected "
            "numbers whose squares are finite: scale outputs and labels down"
        )


def _check(problem: Problem, factors: Factors, tolerance: float) -> None:
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"got the tolerance {tolerance}, expected a positive number: give one such as 1e-6")
    problem.require_factors(factors, "certify the answer against the problem it was made for")
