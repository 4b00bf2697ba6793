"""One layer's Jacobian as rows with every column of their output-gradients, and the products made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.tangent.operator import Products
from tangentlora.tangent.rows import Rows, combine, lengths, orthonormal

_FEW = 64  # columns up to which `product` is the faster one


@final
@dataclass(frozen=True, eq=False)
class LayerRows(Rows):
    """One layer's Jacobian as rows sorted by example: `counts[i]` rows belong to example i."""

    x: Float[Tensor, "R n"]
    g: Float[Tensor, "R K m"]
    counts: Int[Tensor, " N"]

    @property
    def held(self) -> Float[Tensor, "R K m"]:
        """All of g."""
        return self.g

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of the weight matrix."""
        return self.g.shape[2], self.x.shape[1]

    @property
    def n_outputs(self) -> int:
        return self.g.shape[1]

    def _norms(self) -> Float[Tensor, "R K"]:
        return lengths(self.g)

    def weighted(self, a: Float[Tensor, "N K"]) -> Float[Tensor, "R m"]:
        """Return ĝ_ρ = Σ_k a_ik g_ρk for the example i of each row: M_t = Σ_ρ ĝ_ρ x_ρᵀ."""
        if self.g.shape[1] == 1:
            return self.g[:, 0] * a[self.example]
        return torch.bmm(a[self.example].unsqueeze(1), self.g).squeeze(1)

    def times(self, u: Float[Tensor, "m r"]) -> Float[Tensor, "R K r"]:
        """Return g_ρkᵀ u."""
        return product(self.g.flatten(0, 1), u).reshape(*self.g.shape[:2], u.shape[1])

    def inner(self, delta: Float[Tensor, "m n"]) -> Float[Tensor, "R K"]:
        """Return ⟨g_ρk x_ρᵀ, δ⟩."""
        return torch.bmm(self.g, (self.x @ delta.T).unsqueeze(2)).squeeze(2)

    def pull(self, a: Float[Tensor, "N K"], rows: Float[Tensor, "R p"]) -> Float[Tensor, "m p"]:
        """Return Σ_ρ ĝ_ρ rows_ρᵀ; with the inputs x for rows that is M_t."""
        if rows.shape[1] > _FEW:
            return self.weighted(a).T @ rows
        if a.shape[1] == 1:  # then weighting the few columns of the rows is less work than the m of g
            return product(self.g[:, 0].T, a[self.example] * rows)
        return product(self.weighted(a).T, rows)

    def pull_each(self, rows: Float[Tensor, "R p"]) -> Float[Tensor, "N K m p"]:
        """Return Σ_{ρ∈i} g_ρk rows_ρᵀ for every example and output."""
        pulled = self.summed(self.g.flatten(1), rows)
        return pulled.reshape(len(self.counts), *self.g.shape[1:], rows.shape[1])

    def products(self, a: Float[Tensor, "N K"]) -> Products:
        """Return the products with M_t = Σ_ρ ĝ_ρ x_ρᵀ and M_tᵀ, by way of the rows."""
        g, x = self.weighted(a), self.x
        return (lambda V: product(g.T, product(x, V)), lambda U: product(x.T, product(g, U)))

    def combined(self, C: Float[Tensor, "J K"]) -> LayerRows:
        """Return the rows of the outputs z ↦ C z."""
        return replace(self, g=combine(C, self.g))

    def converted(self, dtype: torch.dtype, where: torch.device) -> LayerRows:
        """Return the rows in a precision and on a device."""
        return LayerRows(self.x.to(where, dtype), self.g.to(where, dtype), self.counts.to(where))

    def with_inputs(self, x: Float[Tensor, "R _n"]) -> LayerRows:
        """Return rows of the same output-gradients with other inputs."""
        return LayerRows(x, self.g, self.counts)

    def select(self, index: Int[Tensor, " S"]) -> LayerRows:
        """Return the rows of the examples `index`, in that order."""
        counts = self.counts[index]
        starts = (self.counts.cumsum(0) - self.counts)[index]
        within = torch.arange(int(counts.sum()), device=counts.device)
        within = within - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        rows = torch.repeat_interleave(starts, counts) + within
        return LayerRows(self.x[rows], self.g[rows], counts)

    def run(self, start: int, stop: int) -> LayerRows:
        """Return the rows of the examples from `start` to before `stop`, as views."""
        counts = self.counts[start:stop]
        first = int(self.counts[:start].sum())
        rows = slice(first, first + int(counts.sum()))
        return LayerRows(self.x[rows], self.g[rows], counts)

    def column_basis(self) -> Float[Tensor, "m p"] | None:
        """Return an orthonormal basis of the columns that g spans, None where it is no smaller than m."""
        return orthonormal(self.g.flatten(0, 1))

    def project(
        self, row_basis: Float[Tensor, "n q"] | None, column_basis: Float[Tensor, "m p"] | None
    ) -> LayerRows:
        """Return the rows in coordinates AᵀδB, A = `column_basis`, B = `row_basis`; None is the identity."""
        x = self.x if row_basis is None else self.x @ row_basis
        g = self.g if column_basis is None else self.g @ column_basis
        return LayerRows(x, g, self.counts)


def product(matrix: Float[Tensor, "d e"], columns: Float[Tensor, "e r"]) -> Float[Tensor, "d r"]:
    """Return matrix · columns for few columns, stored by columns.

    It is computed as the transpose of columnsᵀ · matrixᵀ: a few contiguous rows on the left take half the
    time of a few columns on the right, or less. Columns that are not stored so are copied first.
    """
    transposed: Tensor = columns.T.contiguous() @ matrix.T
    return transposed.T
