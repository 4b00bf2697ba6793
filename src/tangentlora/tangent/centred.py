"""The Jacobian of outputs less their mean, held as that of their K−1 contrasts: all that a softmax can tell.

With the Helmert contrasts C (K−1,K) the outputs less their mean are CᵀCz, so J is CᵀJ' with J' = CJ. What J'
takes is taken: K−1 backward passes for K, and (K−1)/K of the output-gradients. Derived; docs/theory.md,
"Contrasts".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.blocks import Blocks, Factors
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.operator import Extent, Operator, Point, Products, Weigh


def helmert(n_outputs: int) -> Float[Tensor, "J K"]:
    """Return the Helmert contrasts, (K−1,K): an orthonormal basis of the vectors that sum to zero."""
    k = torch.arange(1, n_outputs, dtype=torch.float64).unsqueeze(1)
    column = torch.arange(n_outputs, dtype=torch.float64)
    rows = (column < k).double() - k * (column == k).double()
    contrasts: Tensor = rows / torch.sqrt(k * (k + 1))
    return contrasts


@final
@dataclass(frozen=True, eq=False)
class CentredJacobian(Operator):
    """J = CᵀJ' of K outputs less their mean, where J' = `contrasts` is that of their K−1 contrasts."""

    contrasts: Operator

    @cached_property
    def basis(self) -> Float[Tensor, "J K"]:
        """The Helmert contrasts C."""
        return helmert(self.n_outputs).to(self.device, self.dtype)

    @property
    def n_examples(self) -> int:
        return self.contrasts.n_examples

    @property
    def n_outputs(self) -> int:
        return self.contrasts.n_outputs + 1

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape (m, n) of each layer's matrix."""
        return self.contrasts.shapes

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, which are those of the contrasts."""
        return self.contrasts.nbytes

    @property
    def dtype(self) -> torch.dtype:
        return self.contrasts.dtype

    @property
    def device(self) -> torch.device:
        return self.contrasts.device

    @cached_property
    def extents(self) -> dict[str, Extent]:
        """How large the rows of each layer are; `sizes` are Σ_j |C_jk| of those of the contrasts j."""
        return {
            name: Extent(extent.rows, extent.longest, extent.sizes @ self.basis.abs())
            for name, extent in self.contrasts.extents.items()
        }

    @property
    def largest(self) -> tuple[float, float]:
        """Bounds on the largest |entry| of all x and of all g; not finite where one of them is not."""
        x, g = self.contrasts.largest
        return x, g * self.n_outputs  # |Σ_j C_jk g_j| ≤ √(K−1) max |g_j|

    def forward(self, delta: Blocks) -> Float[Tensor, "N K"]:
        """Return Jδ, (N,K), for dense per-layer updates; a layer that `delta` lacks counts as zero."""
        return self.contrasts.forward(delta) @ self.basis

    def adjoint(self, a: Float[Tensor, "N K"], names: Sequence[str] | None = None) -> Blocks:
        """Return M_t = Σ_ik a_ik J_ik,t, (m,n), for every layer, or for those named."""
        return self.contrasts.adjoint(a @ self.basis.T, names)

    def adjoint_products(self, a: Float[Tensor, "N K"]) -> dict[str, Products]:
        """Return the products with each M_t and M_tᵀ; M_t itself is formed only where that is cheaper."""
        return self.contrasts.adjoint_products(a @ self.basis.T)

    def at(self, factors: Factors) -> CentredPoint:
        """Return the operator at (u, v). A layer that `factors` lacks counts as rank zero."""
        return CentredPoint(self.contrasts.at(factors), self.basis)

    def gram(self, weights: Mapping[str, float] | None = None) -> Float[Tensor, "NK NK"]:
        """Return Θ = Σ_t w_t² J_t J_tᵀ, (NK,NK), row i·K + k: the tangent kernel, where all w_t = 1."""
        n, j, k = self.n_examples, *self.basis.shape
        inner = self.contrasts.gram(weights).reshape(n, j, n, j)
        return torch.einsum("jk,ijhl,lm->ikhm", self.basis, inner, self.basis).reshape(n * k, n * k)

    def loaded(self) -> Jacobian | None:
        """Return it with the rows of all K outputs in memory, None where they lie elsewhere."""
        inner = self.contrasts.loaded()
        return None if inner is None else inner.combine_outputs(self.basis.T)

    def select(self, index: Sequence[int] | Int[Tensor, " S"]) -> Jacobian:
        """Return the rows of few examples, in that order, in memory."""
        return self.contrasts.select(index).combine_outputs(self.basis.T)

    def within(self, bases: Factors) -> Jacobian:
        """Return the Jacobian in the coordinates AᵀδB of a few columns, its rows in memory."""
        return self.contrasts.within(bases).combine_outputs(self.basis.T)

    def combine_outputs(self, C: Float[Tensor, "J K"]) -> Operator:
        """Return the operator of the outputs z ↦ C z; of their contrasts it is the one that is held."""
        C = C.to(self.basis)
        if torch.equal(C, self.basis):
            return self.contrasts
        return self.contrasts.combine_outputs(C @ self.basis.T)

    def _converted(self, dtype: torch.dtype, where: torch.device) -> CentredJacobian:
        return CentredJacobian(self.contrasts.to(dtype, where))


@final
@dataclass(frozen=True, eq=False)
class CentredPoint(Point):
    """The operator of the contrasts at (u, v), and C."""

    contrasts: Point
    C: Float[Tensor, "J K"]

    def forward(self) -> Float[Tensor, "N K"]:
        """Return J(uvᵀ), (N,K)."""
        return self.contrasts.forward() @ self.C

    def adjoint(self, a: Float[Tensor, "N K"]) -> Factors:
        """Return (M_t v_t, M_tᵀ u_t) per layer for M_t = Σ_ik a_ik J_ik,t."""
        return self.contrasts.adjoint(a @ self.C.T)

    def differential(self, d: Factors) -> Float[Tensor, "N K"]:
        """Return J(U vᵀ + u Vᵀ), (N,K), for a direction d = (U, V)."""
        return self.contrasts.differential(d) @ self.C

    def curvature(self, d: Factors, weigh: Weigh) -> Factors:
        """Return the adjoint of weigh(differential(d)), in one pass over the rows."""
        return self.contrasts.curvature(d, lambda z, examples: weigh(z @ self.C, examples) @ self.C.T)

    def rough(self) -> CentredPoint:
        """Return the same whose products may be rounded to float32."""
        return replace(self, contrasts=self.contrasts.rough())
