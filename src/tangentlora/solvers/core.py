"""The problem in the span of a few columns: P over δ_t = A_t S_t B_tᵀ, its core S_t a matrix of few numbers.

With orthonormal A_t (m,r) and B_t (n,r) it is a problem of the same form, as ‖A S Bᵀ‖_* = ‖S‖_*, and so
small that solving it costs about as much as a pass over the rows. It finds the best weights of all columns
and of those that an escape appends. A column that the optimum does not want ends at zero there, where
Newton's method on all of the problem would halve it step by step, since F is nearly quartic along it.
Derived; docs/theory.md, "Stationary points".
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem, half_squares
from tangentlora.problem.ranks import truncate
from tangentlora.problem.spectral import RANK_TOLERANCE
from tangentlora.solvers.newton import newton
from tangentlora.solvers.spectral_start import spectral_start
from tangentlora.tangent.span import Span

_SHARE = 0.2  # of the way from λ to the largest singular value: pairs nearer to λ wait for the next time

Pairs = Mapping[str, tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "n k"]]]


def settled(problem: Problem, factors: Factors, pairs: Pairs, precision: float) -> Factors:
    """Return the best factors in the span of these and of the singular pairs (a, σ, b) above λ, balanced.

    The weights are those at which the gradient within the span is `precision`·λ‖(u,v)‖. Singular values below
    `precision` of the largest, of as little effect, are dropped, unless that takes back a tenth of what was
    gained.
    """
    bases: Factors = {}
    for name, (u, v) in factors.items():
        if name in pairs and len(pairs[name][1]):
            a, sigma, b = pairs[name]
            far = sigma > problem.lam + _SHARE * max(0.0, float(sigma[0]) - problem.lam)
            u, v = torch.cat([u, a[:, far]], 1), torch.cat([v, b[:, far]], 1)
        if u.shape[1]:
            bases[name] = _orthonormal(u), _orthonormal(v)
    if not bases:
        return factors
    span = Span({name: A for name, (A, _) in bases.items()}, {name: B for name, (_, B) in bases.items()})
    core = Problem(problem.jacobian.within(bases), problem.f0, problem.y, problem.loss, problem.lam)
    given = span.lower({name: factors[name] for name in bases})
    begin = spectral_start(core, given)
    unit = problem.lam * (2 * half_squares(begin)) ** 0.5
    found = newton(core, begin, tolerance=precision * unit).factors
    kept = truncate(core, found, max(precision, RANK_TOLERANCE))
    least = core.factored_objective(found)
    if not core.factored_objective(kept) <= least + 0.1 * (core.factored_objective(given) - least):
        kept = truncate(core, found, RANK_TOLERANCE)
    return factors | span.lift(kept)


def _orthonormal(columns: Float[Tensor, "m r"]) -> Float[Tensor, "m r"]:
    """Return an orthonormal basis of the span, and columns of zeros for those that exceed its dimension."""
    basis: Tensor = torch.linalg.qr(columns).Q
    return torch.nn.functional.pad(basis, (0, columns.shape[1] - basis.shape[1]))
