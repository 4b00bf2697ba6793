"""The duality gap: a number that proves how far an answer is from the global optimum, at any rank.

With a = ∇_z L̂ (N,K), M_t = Σ_ik a_ik J_ik,t and s = min(1, λ / max_t ‖M_t‖₂), the point s·a is feasible for the
dual of min P, so

    P(δ) − min P  ≤  gap = P(δ) − [ s⟨a, f0⟩ − (1/N) Σ_i ℓ_i*(N s a_i) ].

No rank condition enters. Every number is computed here, in float64, from the Jacobian; nothing is taken from a
solver. Derived; docs/theory.md, "The certificate", where the margin for rounding is derived too.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem, half_squares, nuclear_norm, ranks
from tangentlora.solvers.solution import Solution

EPS = float(torch.finfo(torch.float64).eps)


@dataclass(frozen=True)
class Certificate:
    """What is proved of one answer; P(δ) − min P ≤ gap + rounding.

    `spectral_norms` are upper bounds on ‖M_t‖₂, `dual_scale` is s, `ranks` the numerical rank of each δ_t,
    `constraints` the number c of independent outputs on the data (the rank of the tangent kernel; see
    `Problem.constraints`), `rounding` what float64 may have added to or taken from the gap. `factored_gap` bounds
    F(u,v) − min F for the factors as trained, whose penalty is ½(‖u‖² + ‖v‖²).
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
        """Return the verdict in one sentence, with the gap and the tolerance."""
        rank = sum(self.ranks.values())
        if self.certified:
            return (
                f"Certified: within {self.relative_gap:.1e} (tolerance {self.tolerance:.0e}) of the global optimum, "
                f"at total rank {rank}."
            )
        return (
            f"Not certified: the gap {self.relative_gap:.1e} is above the tolerance {self.tolerance:.0e}; "
            f"the objective is {self.objective:.6g} and no answer of any rank is below {self.lower_bound:.6g}."
        )

    def write(self, path: Path) -> None:
        """Write the certificate as JSON, whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(partial, path)


def read_certificate(path: Path) -> Certificate:
    """Read a certificate back; raises InputError where the file is missing, not JSON or lacks a field."""
    try:
        values = json.loads(path.read_text())
        return Certificate(**{f.name: values[f.name] for f in fields(Certificate)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"got {path}, which is not a readable certificate ({type(error).__name__}: {error}), expected the JSON file "
            "that fit writes: run fit again"
        ) from error


def certify(problem: Problem, solution: Solution | Factors, tolerance: float = 1e-6) -> Certificate:
    """Return the certificate of an answer: certified if gap + rounding ≤ tolerance·max(1, P).

    Takes a Solution or bare factors {name: (u (m,r), v (n,r))}; only the factors are used. Raises InputError where
    they are not finite or do not fit the problem.
    """
    factors = solution.factors if isinstance(solution, Solution) else solution
    _check(problem, factors)
    factors = problem.zero() | {name: (u.double(), v.double()) for name, (u, v) in factors.items()}
    z = problem.outputs(factors)
    data_fit = problem.empirical_loss(z)
    objective = data_fit + problem.lam * nuclear_norm(factors)
    factored = data_fit + problem.lam * half_squares(factors)
    a = problem.dual_point(z)
    norms = {name: spectral_norm_bound(problem, name, a) for name in problem.jacobian.layers}
    largest = max(norms.values())
    scale = 1.0 if largest <= problem.lam else problem.lam / largest
    conjugate = problem.loss.conjugate(len(z) * scale * a, problem.y)
    lower_bound = float(scale * (a * problem.f0).sum() - conjugate.mean())
    rounding = _rounding(problem, factors, z, a, conjugate)
    gap = objective - lower_bound
    size = max(1.0, abs(objective))
    return Certificate(
        objective=objective,
        lower_bound=lower_bound,
        gap=gap,
        relative_gap=gap / size,
        rounding=rounding,
        tolerance=tolerance,
        certified=math.isfinite(gap) and gap + rounding <= tolerance * size,
        factored_objective=factored,
        factored_gap=factored - lower_bound,
        loss=problem.loss.name,
        lam=problem.lam,
        dual_scale=scale,
        spectral_norms=norms,
        ranks=ranks(factors),
        constraints=problem.constraints,
        n_examples=len(z),
        n_outputs=z.shape[1],
        dtype="float64",
    )


def spectral_norm_bound(problem: Problem, name: str, a: Float[Tensor, "N K"]) -> float:
    """Return an upper bound on ‖M_t‖₂ for the exact M_t = Σ_ik a_ik J_ik,t: a dense float64 SVD plus its rounding.

    ‖M‖₂ ≤ σ̂₁(1 + 8·max(m,n)·ε) + (R + K + 2)·ε·Σ_ρ ‖Σ_k |a_k g_ρk|‖‖x_ρ‖; a power iteration would be a lower bound.
    """
    rows = problem.jacobian.layers[name]
    weighted = rows.weighted(a)
    sigma = float(torch.linalg.svdvals(weighted.T @ rows.x)[0])
    magnitude = (a[rows.example].abs() * rows.g.norm(dim=2)).sum(1) @ rows.x.norm(dim=1)
    terms = len(rows.x) + rows.g.shape[1] + 2
    return sigma * (1 + 8 * max(rows.shape) * EPS) + terms * EPS * float(magnitude)


def _rounding(problem: Problem, factors: Factors, z: Tensor, a: Tensor, conjugate: Tensor) -> float:
    """Bound what rounding can do to P(δ) and to the dual value at the computed a; docs/theory.md, "Rounding"."""
    n, k = z.shape
    z_error = problem.f0.abs() * EPS
    for name, (u, v) in factors.items():
        rows = problem.jacobian.layers[name]
        m, width = rows.shape
        terms = m + width + u.shape[1] + int(rows.counts.max())
        sizes = rows.per_example(rows.g.norm(dim=2) * rows.x.norm(dim=1, keepdim=True))
        z_error = z_error + terms * EPS * sizes * float((u.norm(dim=0) * v.norm(dim=0)).sum())
    values = problem.loss.value(z, problem.y).abs().mean() + z.abs().max()
    primal = float((a.abs() * z_error).sum()) + 8 * (n + k) * EPS * float(values)
    penalty = sum(
        8 * (max(u.shape[0], v.shape[0]) + u.shape[1]) * EPS * half_squares({"": (u, v)})
        for u, v in factors.values()
    )
    dual = (n * k + 2) * EPS * float((a * problem.f0).abs().sum()) + 64 * (n + k) * EPS * float(
        1 + conjugate.abs().mean()
    )
    return primal + problem.lam * penalty + dual


def _check(problem: Problem, factors: Factors) -> None:
    for name, (u, v) in factors.items():
        shape = problem.jacobian.shapes.get(name)
        if shape is None or (u.shape[0], v.shape[0]) != shape or u.shape[1] != v.shape[1]:
            raise InputError(
                f"got factors of shapes {tuple(u.shape)} and {tuple(v.shape)} for {name!r}, expected (m, r) and (n, r) of "
                f"a layer of the problem with (m, n) = {shape}: certify the answer against the problem it was made for"
            )
        if not (torch.isfinite(u).all() and torch.isfinite(v).all()):
            raise InputError(
                f"got factors of {name!r} that are not finite, expected numbers: the run diverged, so lower the learning rate"
            )
