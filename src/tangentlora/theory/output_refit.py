"""The least change of factors (u, v) that moves the outputs as asked, to first order.

Along (U, V) the outputs of the linearised problem move by B(U,V) + J(UVᵀ), where row (i,k) of B holds J_ik v
and J_ikᵀ u of every layer. The least-squares solution of B d = e that is damped by μ is

    d = Bᵀ (B Bᵀ + μ‖BBᵀ‖₂ I)⁻¹ e,   B Bᵀ = Σ_t Σ ⟨J_ik v, J_jl v⟩ + ⟨J_ikᵀ u, J_jlᵀ u⟩,

at μ = 0 the shortest of all. Ranks stay. As there are Σ_t r_t(m_t + n_t − r_t) independent moves and N·K'
outputs, even small ranks can usually give every output on the data: how far they move is the price.
Derived; docs/theory.md, "Compressing an update".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.spectral import EPS, balance
from tangentlora.tangent.jacobian import Jacobian

_STALLED = 0.9  # a step that leaves more of the error than this is the last
_DAMPING = 1e-4  # the least damping above 0
_GOOD = 0.5  # a step that leaves no more than this is taken without a trial of more damping
_TRIALS = 8


class Refit:
    """Corrections of balanced factors (u, v) by one Jacobian, in the outputs that are to be kept."""

    def __init__(self, jacobian: Jacobian, factors: Factors) -> None:
        self.jacobian = jacobian
        self.factors = {name: balance(u, v) for name, (u, v) in factors.items()}
        self._point = jacobian.at(self.factors)

    @cached_property
    def _spectrum(self) -> tuple[Float[Tensor, " NK"], Float[Tensor, "NK NK"]]:
        """The eigenvalues, smallest first, and eigenvectors of B Bᵀ; B itself is never held whole."""
        size = self.jacobian.n_examples * self.jacobian.n_outputs
        kernel = torch.zeros(size, size, dtype=self.jacobian.dtype, device=self.jacobian.device)
        for name, (u, _) in self.factors.items():
            if u.shape[1]:
                for moved in (self._point.moved_by_u(name), self._point.moved_by_v(name)):
                    side = moved.reshape(size, -1)
                    kernel += side @ side.T
        values, vectors = torch.linalg.eigh(kernel)
        return values, vectors

    def moved(self, error: Float[Tensor, "N K"], damping: float = 0.0) -> Factors:
        """Return (u, v) + d for the shortest d that moves the outputs by `error` to first order.

        Eigenvalues of BBᵀ at rounding, N·K'·ε of the largest, count as zero. `damping` is μ.
        """
        values, vectors = self._spectrum
        largest = float(values[-1])
        floor = len(values) * EPS * largest
        inverse = torch.where(values > floor, 1 / (values + damping * largest), 0.0)
        a = (vectors @ (inverse * (vectors.T @ error.flatten()))).reshape(error.shape)
        step = self._point.adjoint(a)
        return {name: (u + step[name][0], v + step[name][1]) for name, (u, v) in self.factors.items()}


def restore(
    factors: Factors,
    error_of: Callable[[Factors], Tensor],
    jacobian_of: Callable[[Factors], Jacobian],
    *,
    enough: float,
    steps: int,
) -> Factors:
    """Return balanced factors of these ranks nearby with max_i ‖e_i‖₂ ≤ `enough`, if they are found.

    `error_of` gives e (N,K), the outputs wanted less those there are, and `jacobian_of` the derivative of
    those there are with respect to δ at these factors. There are at most `steps` Gauss–Newton steps, each the
    shortest. One that does not halve ‖e‖_F is tried with ever more damping, and the best is taken if ‖e‖_F
    falls. The search also ends with a step that leaves over nine tenths of ‖e‖_F, so the caller measures what
    was reached.
    """
    error, damping = error_of(factors), 0.0
    movable = any(u.shape[1] for u, _ in factors.values())
    for _ in range(steps if movable else 0):
        if float(error.norm(dim=1).max()) <= enough:
            break
        refit, asked = Refit(jacobian_of(factors), factors), error
        least = before = float(asked.norm())
        for mu in _trials(damping):
            candidate = refit.moved(asked, mu)
            left = error_of(candidate)
            if float(left.norm()) < least:
                factors, error, least, damping = candidate, left, float(left.norm()), mu / 10
            elif least < before:
                break
            if least <= _GOOD * before:
                break
        if least > _STALLED * before:
            break
    return {name: balance(u, v) for name, (u, v) in factors.items()}


def _trials(damping: float) -> list[float]:
    """Return the damping of the last step eased, and more of it, tenfold each time."""
    first = damping if damping >= _DAMPING else 0.0
    return [first, *(max(first, _DAMPING / 10) * 10**k for k in range(1, _TRIALS))]
