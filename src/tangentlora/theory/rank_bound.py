"""An upper bound on the rank of every optimum at once, from the gap of any one answer.

The loss is L-smooth, so the dual is (N/L)-strongly concave, and a feasible dual point with duality gap `gap`
lies within √(2·L·gap/N) of the only dual optimum ν*. Every optimum δ* lives on the singular vectors of
M_t(ν*) = Σ_ik ν*_ik J_ik,t whose singular value is λ. By Weyl's inequality those are at most as many as the
singular values of the M_t at hand that may still reach λ.
Derived; docs/theory.md, "The rank of every optimum".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tangentlora.blocks import Factors, cast
from tangentlora.problem.independence import in_range
from tangentlora.problem.objective import Problem
from tangentlora.problem.rounding import spectral_norm_bounds
from tangentlora.problem.spectral import EPS
from tangentlora.solvers.solution import Solution
from tangentlora.tangent.jacobian import Jacobian, divided
from tangentlora.theory.certificate import certify

_KERNEL_LIMIT = 4096  # outputs, above which a layer's kernel is bounded by its trace


@dataclass(frozen=True)
class RankBound:
    """No optimum has a larger rank than `ranks`, layer by layer; `sides` holds min(m, n), which says nothing.

    `distance` bounds ‖ν − ν*‖₂ in the dual. A singular value of s·M_t counts if it is at least λ − `slack`.
    """

    ranks: dict[str, int]
    sides: dict[str, int]
    distance: float
    slack: dict[str, float]

    @property
    def largest(self) -> int:
        """The largest bound of a layer: at this rank LoRA can express every optimum."""
        return max(self.ranks.values())

    def sentence(self) -> str:
        """Return the bound in one sentence."""
        if self.ranks == self.sides:
            return "The gap is too large to bound the rank of the optima: solve to a smaller tolerance."
        return f"No optimum has a rank above {self.largest} in any layer."


def rank_bound(problem: Problem, solution: Solution | Factors) -> RankBound:
    """Return an upper bound on rank(δ*_t), per layer, that every minimiser of P satisfies.

    rank(δ*_t) ≤ #{ j : s·σ_j(M_t) ≥ λ − √λ_max(Θ_t)·√(2·L·gap/N) − rounding }, with M_t and s those of the
    answer's certificate and Θ_t the contrasted kernel of layer t. It holds whatever the answer is, and says
    something once the gap is small. Raises InputError where `certify` does.
    """
    factors = solution.factors if isinstance(solution, Solution) else solution
    certificate = certify(problem, factors)
    z = problem.outputs(cast(factors, problem.f0))
    a, s = problem.dual_point(z), certificate.dual_scale
    gap = max(certificate.gap + certificate.rounding, 0.0)
    distance = math.sqrt(2 * problem.loss.smoothness * gap / len(z)) * (1 + 4 * EPS)
    bounds, slack = {}, {}
    contrasted, norms = problem.contrasted.rows, spectral_norm_bounds(problem, a)
    for name, M in problem.jacobian.adjoint(a).items():
        sigma = torch.linalg.svdvals(M)
        # what rounding may have moved every singular value by, doubled as it is a difference itself
        rounding = 2 * (norms[name] - float(sigma[0]))
        slack[name] = s * rounding + operator_norm_bound(contrasted.only([name])) * distance
        bounds[name] = int((~(s * sigma + slack[name] < problem.lam)).sum())  # a NaN counts too
    sides = {name: min(shape) for name, shape in problem.jacobian.shapes.items()}
    return RankBound(bounds, sides, distance, slack)


def operator_norm_bound(jacobian: Jacobian) -> float:
    """Return an upper bound on max ‖Σ_ik e_ik J_ik‖_F over ‖e‖₂ = 1: √λ_max(Θ), Θ = J Jᵀ.

    Above 4,096 outputs it is √tr Θ = ‖J‖_F. Added is what rounding may have taken: each entry of Θ is a sum
    of products that is wrong by at most (m + n + 2R_i + K + 8)ε Σ‖g_ρk‖‖x_ρ‖ Σ‖g_σl‖‖x_σ‖, R_i the most rows
    of an example, and eigvalsh is exact for a matrix within 8·NK·ε‖Θ‖. J is first divided by its largest row,
    so that no square leaves the range of float64.
    """
    largest = max(float(extent.sizes.max()) for extent in jacobian.extents.values())
    if largest and in_range(jacobian.zeros()[:, 0] + largest, jacobian):
        return _unit_norm_bound(jacobian)
    unit = divided(jacobian, jacobian.zeros()[:, 0] + (largest or 1.0))
    return largest * _unit_norm_bound(unit) * (1 + 16 * EPS)


def _unit_norm_bound(jacobian: Jacobian) -> float:
    size = jacobian.n_examples * jacobian.n_outputs
    if size > _KERNEL_LIMIT:
        top = sum(float(jacobian.select([i]).gram().trace()) for i in range(jacobian.n_examples))
    else:
        top = float(torch.linalg.eigvalsh(jacobian.gram())[-1])
    forming = 0.0
    for name, extent in jacobian.extents.items():
        terms = sum(jacobian.shapes[name]) + 2 * extent.longest + jacobian.n_outputs + 8
        forming += terms * EPS * float(extent.sizes.square().sum())
    return math.sqrt(max(top, 0.0) * (1 + 8 * size * EPS) + forming)
