"""The factored objective F around a point (u, v), to second order, for a problem in span coordinates.

Along a direction d = (U, V) over all layers the outputs move by B d, where row (i,k) of the design matrix B
holds vec(J_ik v) for U and vec(J_ikᵀ u) for V. With M_t = Σ_ik a_ik J_ik,t,

    ∇²F d = Bᵀ ∇²L̂ (B d) + (M V, Mᵀ U) + λ d.

Where A = (∇²L̂)^{1/2} B fits in memory one pass over the Jacobian builds it, and every product costs two thin
products with A; else a product is one pass over the Jacobian.
Derived; docs/theory.md, "Newton's method".
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.blocks import Blocks, Factors, pack, unpack
from tangentlora.problem.objective import Problem, half_squares
from tangentlora.solvers.design import design_matrix, loss_root
from tangentlora.solvers.leading_pairs import leading_pairs
from tangentlora.tangent.jacobian import FactoredPoint
from tangentlora.tangent.operator import Point

_DESIGN_LIMIT = 2**22  # entries of A that are kept; to build more costs more than it saves
_FACTOR_LIMIT = 1024  # the largest matrix that the preconditioner factors
_DROWNED = 1e-13  # of the trace of AᵀA: a λ below that is raised to it in the preconditioner
_LOWEST = 0.1  # of λ: what the preconditioner leaves along a pair at λ; with less, rounding drowns it


class LocalModel:
    """F at factors (u, v): the value at once; gradient, products and preconditioner when first asked for.

    Directions are stacked into vectors, layer by layer; a layer of rank zero has no entries. With `formed`
    products use M_t as a matrix, which pays from about ten products on; else the rows of the Jacobian. With
    `lowered` the preconditioner knows the leading pairs of M_t too, which pays near a stationary point.
    """

    def __init__(
        self, problem: Problem, factors: Factors, *, formed: bool = True, lowered: bool = False
    ) -> None:
        self.problem, self.formed, self.lowered = problem, formed, lowered
        self.factors = {name: (u, v) for name, (u, v) in factors.items() if u.shape[1]}
        self._point = problem.jacobian.at(self.factors)
        self.z = problem.f0 + self._point.forward()
        self.value = problem.empirical_loss(self.z) + problem.lam * half_squares(self.factors)

    @cached_property
    def _rough(self) -> Point:
        return self._point.rough()

    @cached_property
    def _dual(self) -> Float[Tensor, "N K"]:
        return self.problem.dual_point(self.z)

    @cached_property
    def loss_gradient(self) -> Blocks:
        """M_t = ∇L̂ with respect to δ_t, (m,n), for the layers whose rank is not zero."""
        return self.problem.jacobian.adjoint(self._dual, list(self.factors))

    @cached_property
    def pairs(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Rough singular pairs (a, σ, b) of each M_t with σ > λ/2: those at λ and as many more."""
        least, floor = 2 * (self.problem.jacobian.n_outputs + 1), 0.5 * self.problem.lam
        return {
            name: leading_pairs(M, v, floor, v.shape[1] + max(least, v.shape[1]))
            for (name, M), (_, v) in zip(self.loss_gradient.items(), self.factors.values(), strict=True)
        }

    @cached_property
    def gradient(self) -> Float[Tensor, " d"]:
        """∇F = (M v + λu, Mᵀ u + λv)."""
        M, lam = self.loss_gradient, self.problem.lam
        return self.pack(
            {name: (M[name] @ v + lam * u, M[name].T @ u + lam * v) for name, (u, v) in self.factors.items()}
        )

    @cached_property
    def design(self) -> Float[Tensor, "NK d"] | None:
        """A = (∇²L̂)^{1/2} B; None where it would be too large, or where the rows are not in memory."""
        if self.z.numel() * self._width > _DESIGN_LIMIT or not isinstance(self._point, FactoredPoint):
            return None
        return design_matrix(self._point, self._root(self.z, self.problem.y))

    @cached_property
    def _width(self) -> int:
        return sum(w.numel() for pair in self.factors.values() for w in pair)

    def _root(self, z: Float[Tensor, "S K"], y: Tensor) -> Float[Tensor, "S K K"]:
        return loss_root(self.problem.loss, z, y, len(z))

    def _bent(self, change: Float[Tensor, "B K"], examples: Int[Tensor, " B"]) -> Float[Tensor, "B K"]:
        """Return ∇²L̂ times a change of some examples' outputs."""
        loss, z, y = self.problem.loss, self.z[examples], self.problem.y[examples]
        return loss.hessian_product(z, y, change) / len(self.z)

    def hessian_product(self, d: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Return ∇²F(u,v) d."""
        pairs = self.unpack(d)
        if self.formed:
            M = self.loss_gradient
            cross = {name: (M[name] @ V, M[name].T @ U) for name, (U, V) in pairs.items()}
        else:
            cross = self.problem.jacobian.at(pairs).adjoint(self._dual)
        A = self.design
        fit = self.pack(self._rough.curvature(pairs, self._bent)) if A is None else A.T @ (A @ d)
        return fit + self.pack(cross) + self.problem.lam * d

    @cached_property
    def _sampled(self) -> Float[Tensor, "s d"]:
        """The design matrix that the preconditioner is made of: of all examples, or of a sample of them."""
        if self.design is not None and min(self.design.shape) <= _FACTOR_LIMIT:
            return self.design
        index, jacobian = self.problem.sample
        if self.design is not None:
            of_all = self.design.reshape(*self.z.shape, -1)[index].flatten(0, 1)
            return of_all * math.sqrt(len(self.z) / len(index))
        return design_matrix(jacobian.at(self.factors), self._root(self.z[index], self.problem.y[index]))

    @cached_property
    def _stretched_sample(self) -> Float[Tensor, "s d"]:
        return self._stretched(self._sampled) if self.lowered else self._sampled

    @cached_property
    def _cholesky(self) -> tuple[Float[Tensor, "s s"], float]:
        """The factor of λI + AᵀA or of λI + AAᵀ, whichever is smaller, and the λ in it.

        A λ that rounding in AᵀA would drown is raised to what it leaves: else P⁻¹ has no sign.
        """
        A = self._stretched_sample
        gram = A.T @ A if A.shape[1] <= A.shape[0] else A @ A.T
        shift = max(self.problem.lam, _DROWNED * float(gram.diagonal().sum()))
        while True:
            shifted = gram + shift * torch.eye(len(gram)).to(gram)
            factor: Tensor
            factor, failed = torch.linalg.cholesky_ex(shifted)
            if not failed or not shift < math.inf:
                return factor, shift
            shift *= 10

    def _stretched(self, rows: Float[Tensor, "s d"]) -> Float[Tensor, "s d"]:
        """Return the rows times (P₀/λ)^(-½), P₀ = λI but for λ − σ, at least 0.1 λ, where M_t takes σ away.

        Along the directions (a cᵀ, −b cᵀ) of a singular pair (a, σ, b) it does so.
        """
        result, start = rows.clone(), 0
        for name, (u, v) in self.factors.items():
            (m, r), n = u.shape, len(v)
            a, sigma, b = self.pairs[name]
            U = result[:, start : start + m * r].view(len(rows), m, r)
            V = result[:, start + m * r : start + (m + n) * r].view(len(rows), n, r)
            weight = (1 - sigma / self.problem.lam).clamp(min=_LOWEST).rsqrt() - 1
            along = 0.5 * weight.unsqueeze(1) * (a.T @ U - b.T @ V)
            U += a @ along
            V -= b @ along
            start += (m + n) * r
        return result

    def precondition(self, g: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Return P⁻¹g, P = λI + AᵀA: the Hessian but for M, which knows the scales of the data and of λ.

        Where A is too large to factor it is that of a sample of the examples, whose mean curvature stands
        for that of all. Where the model is `lowered`, λI is less along the leading pairs of M.
        """
        if not self.lowered:
            return self._inverse(g)
        stretched = self._stretched(g.unsqueeze(0)).squeeze(0)
        return self._stretched(self._inverse(stretched).unsqueeze(0)).squeeze(0)

    def _inverse(self, g: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Return (λI + AᵀA)⁻¹g for the stretched A."""
        A, (factor, shift) = self._stretched_sample, self._cholesky
        if len(factor) == len(g):
            return torch.cholesky_solve(g.unsqueeze(1), factor).squeeze(1)
        inner = torch.cholesky_solve((A @ g).unsqueeze(1), factor).squeeze(1)
        return (g - A.T @ inner) / shift

    def correction(self, step: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Return −P⁻¹Bᵀ∇²L̂ J(UVᵀ), which takes back the outputs' second-order change along (U, V)."""
        change = self.problem.jacobian.at(self.unpack(step)).forward()
        bent = self._bent(change, torch.arange(len(change), device=change.device))
        return -self.precondition(self.pack(self._point.adjoint(bent)))

    def moved(self, step: Float[Tensor, " d"]) -> LocalModel:
        """Return the model at (u, v) + step."""
        pairs = self.unpack(step)
        return LocalModel(
            self.problem,
            {name: (u + pairs[name][0], v + pairs[name][1]) for name, (u, v) in self.factors.items()},
            formed=self.formed,
            lowered=self.lowered,
        )

    def pack(self, factors: Factors) -> Float[Tensor, " d"]:
        """Return factors of these shapes as one vector."""
        return pack(factors, self.factors, self.z)

    def unpack(self, vector: Float[Tensor, " d"]) -> Factors:
        """Return the factors that `pack` made into a vector."""
        return unpack(vector, self.factors)
