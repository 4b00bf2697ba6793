"""The factored objective F around a point (u, v), to second order, for a problem in span coordinates.

Along a direction d = (U, V) over all layers the outputs move by B d, where row (i,k) of the design matrix B
holds vec(J_ik v) for U and vec(J_ikᵀ u) for V. With M_t = Σ_ik a_ik J_ik,t,

    ∇²F d = Bᵀ ∇²L̂ (B d) + (M V, Mᵀ U) + λ d.

One pass over the Jacobian builds A = (∇²L̂)^{1/2} B; then every product costs two thin products with A.
Derived; docs/theory.md, "Newton's method".
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Blocks, Factors, pack, unpack
from tangentlora.problem.objective import Problem, half_squares

_FACTOR_LIMIT = 3072  # the largest matrix that the preconditioner factors


class LocalModel:
    """F at factors (u, v): the value at once; gradient, products and preconditioner when first asked for.

    Directions are stacked into vectors, layer by layer; a layer of rank zero has no entries. With `formed`
    products use M_t as a matrix, which pays from about ten products on; else the rows of the Jacobian.
    """

    def __init__(self, problem: Problem, factors: Factors, *, formed: bool = True) -> None:
        self.problem, self.formed = problem, formed
        self.factors = {name: (u, v) for name, (u, v) in factors.items() if u.shape[1]}
        self._point = problem.jacobian.at(self.factors)
        self.z = problem.f0 + self._point.forward()
        self.value = problem.empirical_loss(self.z) + problem.lam * half_squares(self.factors)

    @cached_property
    def _dual(self) -> Float[Tensor, "N K"]:
        return self.problem.dual_point(self.z)

    @cached_property
    def loss_gradient(self) -> Blocks:
        """M_t = ∇L̂ with respect to δ_t, (m,n), for the layers whose rank is not zero."""
        return self.problem.jacobian.only(list(self.factors)).adjoint(self._dual)

    @cached_property
    def gradient(self) -> Float[Tensor, " d"]:
        """∇F = (M v + λu, Mᵀ u + λv)."""
        M, lam = self.loss_gradient, self.problem.lam
        return self.pack(
            {name: (M[name] @ v + lam * u, M[name].T @ u + lam * v) for name, (u, v) in self.factors.items()}
        )

    @cached_property
    def design(self) -> Float[Tensor, "NK d"]:
        """A = (∇²L̂)^{1/2} B, so that AᵀA is the curvature of the data fit."""
        parts = [self._root @ self._rows(name, side).flatten(2) for name in self.factors for side in (0, 1)]
        return torch.cat(parts, 2).flatten(0, 1)

    @cached_property
    def _root(self) -> Float[Tensor, "N K K"]:
        """The square root of ∇²L̂, which couples the outputs of one example only."""
        n, k = self.z.shape
        columns = [
            self.problem.loss.hessian_product(self.z, self.problem.y, unit.expand(n, k))
            for unit in torch.eye(k).to(self.z)
        ]
        values, vectors = torch.linalg.eigh(torch.stack(columns, 2) / n)
        root: Tensor = (vectors * values.clamp(min=0).sqrt().unsqueeze(1)) @ vectors.mT
        return root

    def _rows(self, name: str, side: int) -> Float[Tensor, "N K p r"]:
        """Return J_ik v (side 0) or J_ikᵀ u (side 1) for every example and output."""
        rows = self.problem.jacobian.layers[name]
        n, k = self.z.shape
        counts = rows.counts.tolist()
        if side == 0:
            pairs = zip(
                torch.split(rows.g.flatten(1), counts), torch.split(self._point.xv[name], counts), strict=True
            )
            return torch.stack([g.T @ xv for g, xv in pairs]).reshape(n, k, rows.g.shape[2], -1)
        gu = self._point.gu[name].flatten(1)
        pairs = zip(torch.split(gu, counts), torch.split(rows.x, counts), strict=True)
        return torch.stack([g.T @ x for g, x in pairs]).reshape(n, k, -1, rows.x.shape[1]).mT

    def hessian_product(self, d: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Return ∇²F(u,v) d."""
        pairs = self.unpack(d)
        if self.formed:
            M = self.loss_gradient
            cross = {name: (M[name] @ V, M[name].T @ U) for name, (U, V) in pairs.items()}
        else:
            cross = self.problem.jacobian.at(pairs).adjoint(self._dual)
        return self.design.T @ (self.design @ d) + self.pack(cross) + self.problem.lam * d

    @cached_property
    def _cholesky(self) -> Tensor | None:
        """The factor of λI + AᵀA or of λI + AAᵀ, whichever is smaller; None where both are large."""
        A = self.design
        if min(A.shape) > _FACTOR_LIMIT:
            return None
        gram = A.T @ A if A.shape[1] <= A.shape[0] else A @ A.T
        shift = self.problem.lam
        while True:
            shifted = gram + shift * torch.eye(len(gram)).to(gram)
            factor: Tensor
            factor, failed = torch.linalg.cholesky_ex(shifted)
            if not failed:
                return factor
            shift = max(10 * shift, 1e-15 * float(gram.diagonal().max()))

    def precondition(self, g: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Return P⁻¹g, P = λI + AᵀA: the Hessian but for M, which knows the scales of the data and of λ.

        Where A is too large to factor, P = λI.
        """
        A, factor = self.design, self._cholesky
        if factor is None:
            return g / self.problem.lam
        if len(factor) == len(g):
            return torch.cholesky_solve(g.unsqueeze(1), factor).squeeze(1)
        inner = torch.cholesky_solve((A @ g).unsqueeze(1), factor).squeeze(1)
        return (g - A.T @ inner) / self.problem.lam

    def correction(self, step: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Return −P⁻¹Bᵀ∇²L̂ J(UVᵀ), which takes back the outputs' second-order change along (U, V)."""
        bent = self.problem.jacobian.at(self.unpack(step)).forward()
        return -self.precondition(self.design.T @ (self._root @ bent.unsqueeze(2)).flatten())

    def moved(self, step: Float[Tensor, " d"]) -> LocalModel:
        """Return the model at (u, v) + step."""
        pairs = self.unpack(step)
        return LocalModel(
            self.problem,
            {name: (u + pairs[name][0], v + pairs[name][1]) for name, (u, v) in self.factors.items()},
            formed=self.formed,
        )

    def pack(self, factors: Factors) -> Float[Tensor, " d"]:
        """Return factors of these shapes as one vector."""
        return pack(factors, self.factors, self.z)

    def unpack(self, vector: Float[Tensor, " d"]) -> Factors:
        """Return the factors that `pack` made into a vector."""
        return unpack(vector, self.factors)
