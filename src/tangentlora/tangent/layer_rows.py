"""One layer's Jacobian as rows, J_ik = Σ_{ρ∈i} g_ρk x_ρᵀ, and the products that are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.tangent.band_products import Bands, find_bands

_FEW = 64  # columns up to which `product` is the faster one
_BANDED = 2**19  # entries of g from which bands pay: below, a dozen small products cost more than a large one


@dataclass(frozen=True, eq=False)
class LayerRows:
    """One layer's Jacobian as rows sorted by example: `counts[i]` rows belong to example i."""

    x: Float[Tensor, "R n"]
    g: Float[Tensor, "R K m"]
    counts: Int[Tensor, " N"]

    @cached_property
    def example(self) -> Int[Tensor, " R"]:
        """The example that each row belongs to."""
        return torch.repeat_interleave(self.counts)

    @cached_property
    def sizes(self) -> Float[Tensor, "R K"]:
        """The norm ‖g_ρk‖‖x_ρ‖ of each outer product, Frobenius' and spectral alike."""
        sizes: Tensor = self.g.norm(dim=2) * self.x.norm(dim=1, keepdim=True)
        return sizes

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of the weight matrix."""
        return self.g.shape[2], self.x.shape[1]

    def weighted(self, a: Float[Tensor, "N K"]) -> Float[Tensor, "R m"]:
        """Return ĝ_ρ = Σ_k a_ik g_ρk for the example i of each row: M_t = Σ_ρ ĝ_ρ x_ρᵀ."""
        if self.g.shape[1] == 1:
            return self.g[:, 0] * a[self.example]
        return torch.bmm(a[self.example].unsqueeze(1), self.g).squeeze(1)

    @cached_property
    def bands(self) -> Bands | None:
        """The bands of columns that the rows live in; None where there are none, or few enough rows."""
        return find_bands(self.g, self.counts) if self.g.numel() >= _BANDED else None

    def times(self, u: Float[Tensor, "m r"]) -> Float[Tensor, "R K r"]:
        """Return g_ρkᵀ u."""
        if self.bands is not None:
            return self.bands.times(u)
        return product(self.g.flatten(0, 1), u).reshape(*self.g.shape[:2], u.shape[1])

    def pull(self, a: Float[Tensor, "N K"], rows: Float[Tensor, "R p"]) -> Float[Tensor, "m p"]:
        """Return Σ_ρ ĝ_ρ rows_ρᵀ; with the inputs x for rows that is M_t."""
        if self.bands is not None:
            return self.bands.pull(a[self.example], rows)
        if rows.shape[1] > _FEW:
            return self.weighted(a).T @ rows
        if a.shape[1] == 1:  # then weighting the few columns of the rows is less work than the m of g
            return product(self.g[:, 0].T, a[self.example] * rows)
        return product(self.weighted(a).T, rows)

    def per_example(self, rows: Float[Tensor, "R K"]) -> Float[Tensor, "N K"]:
        """Return the sums over the rows of each example."""
        return rows.new_zeros(len(self.counts), rows.shape[1]).index_add_(0, self.example, rows)

    def by_example(self, rows: Float[Tensor, "R ..."]) -> Float[Tensor, "N L ..."]:
        """Return the rows of each example, filled up with zeros to as many as the longest has."""
        n, longest = len(self.counts), int(self.counts.max())
        if n * longest == len(rows):
            return rows.reshape(n, longest, *rows.shape[1:])
        starts = self.counts.cumsum(0) - self.counts
        within = torch.arange(len(rows), device=rows.device) - starts[self.example]
        filled = rows.new_zeros(n, longest, *rows.shape[1:])
        filled[self.example, within] = rows
        return filled

    def summed(self, left: Float[Tensor, "R p"], right: Float[Tensor, "R q"]) -> Float[Tensor, "N p q"]:
        """Return Σ_{ρ∈i} left_ρ right_ρᵀ for every example, by one batched product."""
        return torch.bmm(self.by_example(left).mT, self.by_example(right))

    def select(self, index: Int[Tensor, " S"]) -> LayerRows:
        """Return the rows of the examples `index`, in that order."""
        counts = self.counts[index]
        starts = (self.counts.cumsum(0) - self.counts)[index]
        within = torch.arange(int(counts.sum()), device=counts.device)
        within = within - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        rows = torch.repeat_interleave(starts, counts) + within
        return LayerRows(self.x[rows], self.g[rows], counts)

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
