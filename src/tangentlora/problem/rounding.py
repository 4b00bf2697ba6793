"""What float64 can do to a certificate: upper bounds on the error of every number in it, to first order.

One fact carries all of it: in any order of summation the computed inner product of j terms is wrong by at
most jη Σ|p_i q_i|, η = ε/2 the unit roundoff, to first order in η. Writing ε for η leaves a factor of two in
every line. Derived; docs/theory.md, "Rounding".
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem, half_squares
from tangentlora.problem.spectral import EPS, norm_bound
from tangentlora.tangent.rows import lengths

LEAST = 2.0**-1074
"""The least positive float64: products below the normal numbers are wrong by half of it."""

_NO_SCALE = 1e-290  # below it s would be rounded by more than an ε of itself, and s = 0 is feasible as well


def dual_scale(lam: float, largest: float) -> float:
    """Return s = min(1, λ / max_t ‖M_t‖₂), rounded by an ε of itself at most; 0 where that cannot be."""
    scale = 1.0 if largest <= lam else lam / largest
    return scale if scale >= _NO_SCALE else 0.0


def spectral_norm_bounds(problem: Problem, a: Float[Tensor, "N K"]) -> dict[str, float]:
    """Return upper bounds on every ‖M_t‖₂ at the dual point that the computed a stands for.

    ‖M‖₂ ≤ τ(1 + 4ε) + Σ_ρk ((R+2K+2)ε|a_ik| + (K+6)ε/N) ‖g_ρk‖‖x_ρ‖ + (2K+2)R√(mn)·μ·max(1,|x|)·max(1,|g|),

    with R rows and μ = 2⁻¹⁰⁷⁴, the least positive number: what a product below the normal numbers may lose.

    τ is the proved bound of `norm_bound` on the computed M; an iteration alone would be a lower bound.
    R+2K+2: M is formed by inner products of K terms, of K more where outputs are centred, and of R. K+6:
    a + e_y/N misses the simplex by (K+6)η/N at most, and the dual point meant is one inside. 4 stands for the
    rounding of s = λ/‖M‖.
    """
    formed = forming_errors(problem, a)
    return {
        name: norm_bound(M) * (1 + 4 * EPS) + formed[name] for name, M in problem.jacobian.adjoint(a).items()
    }


def forming_errors(problem: Problem, a: Float[Tensor, "N K"]) -> dict[str, float]:
    """Return what `spectral_norm_bounds` adds to each ‖M_t‖₂ for forming M_t and for moving a."""
    k, errors = a.shape[1], {}
    x, g = (max(1.0, bound) for bound in problem.jacobian.largest)
    for name, extent in problem.jacobian.extents.items():
        forming = (extent.rows + 2 * k + 2) * EPS * float((a.abs() * extent.sizes).sum())
        inside = (k + 6) * EPS * float(extent.sizes.sum()) / len(a)
        lost = LEAST * (2 * k + 2) * extent.rows * math.sqrt(math.prod(problem.jacobian.shapes[name])) * x * g
        errors[name] = forming + inside + lost
    return errors


def rounding_margin(
    problem: Problem,
    factors: Factors,
    z: Float[Tensor, "N K"],
    a: Float[Tensor, "N K"],
    conjugate: Float[Tensor, " N"],
) -> float:
    """Return a bound on what rounding did to the gap: the errors of P(δ) and of the dual value together.

    L̂: Σ|a_ik|e_ik + Σ e_ik²/2N, since ∇²ℓ ⪯ I, with e the errors of z: nested inner products of n, m, r and
    the rows' terms, of K where outputs are centred, then T layers; and 8(N+K)ε(1 + mean|ℓ| + max|z|) for
    evaluating ℓ and its mean.
    λΣ‖δ_t‖_*: two QR factorisations, each exact for columns within mrη or nrη of those given up to a modest
    factor, and an SVD: 8r(m+n)ε·½(‖u‖² + ‖v‖²).
    Dual value: (NK+K+8)ε(Σ|a_ik f0_ik| + mean_i max_k|f0_ik|) for ⟨a, f0⟩, the second part for moving a into
    the simplex; 64(N+K+4)ε(1 + mean|ℓ*| + mean_i Σ_k N|a_ik|(|z_ik| + N|a_ik|)) for the conjugates: q log q
    moves by η|log η| < 37η near q = 0, and the last sum bounds what may cancel in ½‖a‖² + ⟨a, y⟩.
    """
    n, k = z.shape
    error = problem.f0.abs() * EPS
    penalty = 0.0
    for name, (u, v) in factors.items():
        extent = problem.jacobian.extents[name]
        (m, width), rank = problem.jacobian.shapes[name], u.shape[1]
        terms = m + width + rank + extent.longest + k + len(factors)
        error = error + terms * EPS * extent.sizes * float((lengths(u.T) * lengths(v.T)).sum())
        penalty += problem.lam * (8 * rank * (m + width) * EPS * half_squares({name: (u, v)}))
    values = float(1 + problem.loss.value(z, problem.y).abs().mean() + z.abs().max())
    primal = float((a.abs() * error).sum() + 0.5 * error.square().sum() / n) + 8 * (n + k) * EPS * values
    moved = float((a * problem.f0).abs().sum() + problem.f0.abs().amax(1).mean())
    scaled = n * a.abs()
    terms_of = float(1 + conjugate.abs().mean() + (scaled * (z.abs() + scaled)).sum(1).mean())
    dual = (n * k + k + 8) * EPS * moved + 64 * (n + k + 4) * EPS * terms_of
    return primal + penalty + dual
