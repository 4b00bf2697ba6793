"""What can be proved of factors at a problem: P, a lower bound on min P, and what rounding did to the two.

With a = ∇_z L̂ (N,K), M_t = Σ_ik a_ik J_ik,t and s = min(1, λ / max_t ‖M_t‖₂), the point s·a is feasible for
the dual of min P, so P(δ) − min P ≤ P(δ) − [ s⟨a, f0⟩ − (1/N) Σ_i ℓ_i*(N s a_i) ]. Derived; docs/theory.md,
"The certificate".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem, half_squares, nuclear_norm
from tangentlora.problem.rounding import dual_scale, forming_errors, rounding_margin, spectral_norm_bounds
from tangentlora.problem.spectral import EPS


@dataclass(frozen=True)
class Proof:
    """P and F at the factors, the dual value at s·a, s, the bounds on ‖M_t‖₂, and what rounding may be."""

    objective: float
    factored_objective: float
    lower_bound: float
    dual_scale: float
    spectral_norms: dict[str, float]
    rounding: float

    @property
    def gap(self) -> float:
        """P(δ) less the lower bound; P(δ) − min P ≤ gap + rounding."""
        return self.objective - self.lower_bound

    def holds(self, tolerance: float) -> bool:
        """Whether gap + rounding ≤ tolerance·max(1, P)."""
        allowed = tolerance * max(1.0, abs(self.objective))
        return math.isfinite(self.gap) and self.gap + self.rounding <= allowed


def prove(problem: Problem, factors: Factors, z: Float[Tensor, "N K"] | None = None) -> Proof:
    """Return what float64 proves of the factors, whose outputs are z where those are known."""
    z = problem.outputs(factors) if z is None else z
    data_fit = problem.empirical_loss(z)
    a = problem.dual_point(z)
    norms = spectral_norm_bounds(problem, a)
    largest = max(norms.values())
    scale = dual_scale(problem.lam, largest)
    conjugate = problem.loss.conjugate(len(z) * scale * a, problem.y)
    return Proof(
        objective=data_fit + problem.lam * nuclear_norm(factors),
        factored_objective=data_fit + problem.lam * half_squares(factors),
        lower_bound=float(scale * (a * problem.f0).sum() - conjugate.mean()),
        dual_scale=scale,
        spectral_norms=norms,
        rounding=rounding_margin(problem, factors, z, a, conjugate),
    )


def proved(problem: Problem, factors: Factors, gap: float, tolerance: float) -> bool:
    """Return whether the certificate of these factors holds, for a solver whose own gap of them is `gap`.

    The solver's gap knows fewer outputs and no rounding. Where what rounding can add to it is seen to fit,
    from the sizes of the rows alone, that is the answer; else the proof itself is made.
    """
    if not math.isfinite(gap):
        return False
    return _fits(problem, factors, gap, tolerance) or prove(problem, factors).holds(tolerance)


def _fits(problem: Problem, factors: Factors, gap: float, tolerance: float) -> bool:
    """Return whether gap + κP + 2·margin is within the tolerance, in one pass with the factors.

    The bounds on ‖M_t‖₂ exceed the solver's own by twice the rounding of forming M_t, at most by κλ. That
    takes s back by a share κ of itself at most, and the dual value, concave in s, by κ(D(s) − D(0)).
    """
    z = problem.outputs(factors)
    a, n = problem.dual_point(z), len(z)
    worst = max(
        3 * error + 16 * sum(problem.jacobian.shapes[name]) * EPS * problem.lam
        for name, error in forming_errors(problem, a).items()
    )
    conjugate = problem.loss.conjugate(n * a, problem.y)
    rest = -float(problem.loss.conjugate(0 * a, problem.y).mean())
    value = problem.empirical_loss(z) + problem.lam * half_squares(factors)
    lost = min(1.0, worst / problem.lam) if problem.lam > 0 else 1.0
    margin = 2 * rounding_margin(problem, factors, z, a, conjugate)
    total = gap + lost * max(0.0, value - rest) + margin
    return total <= tolerance * max(1.0, abs(value) - margin)
