"""Rank-one escapes: singular directions of the gradient along which the factored objective falls at once."""

from __future__ import annotations

import torch

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem

_SHORTEST = 1e-14  # τ times the largest singular value: the outputs then move by next to nothing


def spectral_start(problem: Problem, factors: Factors, most: int | None = None) -> Factors:
    """Append √τ(−a, b) for the singular pairs (a, b) of M_t above λ: at most `most` per layer, one τ for all.

    With σ₁(M_t) > λ, F falls by τ(σ₁ − λ) − O(τ²), so a step exists unless M_t is feasible everywhere.
    Then, and where the fall is lost in rounding, nothing is appended. From δ = 0 this is the spectral
    start; elsewhere it is the escape from a point that a smaller rank cannot leave.
    Derived; docs/theory.md, "Stationary points".
    """
    M = problem.jacobian.adjoint(problem.dual_point(problem.outputs(factors)))
    decomposed = {name: torch.linalg.svd(matrix, full_matrices=False) for name, matrix in M.items()}
    pairs: Factors = {}
    for name, (left, sigma, right) in decomposed.items():
        r = int((sigma > problem.lam).sum())
        r = r if most is None else min(r, most)
        weight = (1 - problem.lam / sigma[:r]).sqrt()
        pairs[name] = (-left[:, :r] * weight, right[:r].T * weight)
    if not any(u.shape[1] for u, _ in pairs.values()):
        return factors

    def appended(tau: float) -> Factors:
        root = tau**0.5
        return {
            name: (torch.cat([u, root * pairs[name][0]], 1), torch.cat([v, root * pairs[name][1]], 1))
            for name, (u, v) in factors.items()
        }

    # F along τ is convex: halve τ until F is below its value at τ = 0, then go on while that gains a
    # tenth more; at λ = 0 there may be no minimiser, only ever smaller gains
    base = problem.factored_objective(factors)
    tau, value = 1.0, problem.factored_objective(appended(1.0))
    longest = max(1.0, *(float(sigma[:1].sum()) for _, sigma, _ in decomposed.values()))
    while not value < base and tau > _SHORTEST / longest:
        tau *= 0.5
        value = problem.factored_objective(appended(tau))
    if not value < base:
        return factors
    factor = 2.0 if tau == 1.0 else 0.5
    while base - (trial := problem.factored_objective(appended(tau * factor))) > 1.1 * (base - value):
        tau, value = tau * factor, trial
    return appended(tau)
