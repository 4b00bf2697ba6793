"""The Jacobian of all outputs with respect to all adapted weights, kept as rows g xᵀ and never formed.

For example i, output k and layer t the Jacobian block is a short sum of outer products over the rows ρ of i,

    J_ik,t = Σ_{ρ∈i} g_ρk x_ρᵀ  ∈ R^{m×n},

so every product with it is one tall matrix product over the R rows of all examples together. Changing the
representation (contrasts, restriction to the span, a subset) changes the cost and never the meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.blocks import Blocks, Factors

_GRAM_ENTRIES = 2**25  # entries of the row-by-row products that gram() holds at a time: 256 MB in float64


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

    def per_example(self, rows: Float[Tensor, "R K"]) -> Float[Tensor, "N K"]:
        """Return the sums over the rows of each example."""
        return rows.new_zeros(len(self.counts), rows.shape[1]).index_add_(0, self.example, rows)

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


@dataclass(frozen=True, eq=False)
class FactoredPoint:
    """The products that forward and adjoint share at factors (u, v), computed once."""

    jacobian: Jacobian
    xv: dict[str, Float[Tensor, "R r"]]
    gu: dict[str, Float[Tensor, "R K r"]]

    def forward(self) -> Float[Tensor, "N K"]:
        """Return J(uvᵀ), (N,K): ⟨J_ik, uvᵀ⟩ = Σ_ρ ⟨g_ρkᵀu, x_ρᵀv⟩."""
        total = self.jacobian.zeros()
        for name, xv in self.xv.items():
            rows = self.jacobian.layers[name]
            total += rows.per_example((self.gu[name] * xv.unsqueeze(1)).sum(2))
        return total

    def adjoint(self, a: Float[Tensor, "N K"]) -> Factors:
        """Return (M_t v_t, M_tᵀ u_t) per layer for M_t = Σ_ik a_ik J_ik,t, without forming M_t."""
        pairs: Factors = {}
        for name, xv in self.xv.items():
            rows = self.jacobian.layers[name]
            weights = a[rows.example]
            if a.shape[1] == 1:  # then weighting the r columns of xv is less work than the m of g
                pulled = product(rows.g[:, 0].T, weights * xv)
            else:
                pulled = product(rows.weighted(a).T, xv)
            pairs[name] = (pulled, product(rows.x.T, (weights.unsqueeze(2) * self.gu[name]).sum(1)))
        return pairs


@dataclass(frozen=True, eq=False)
class Jacobian:
    """The linear map δ ↦ (Σ_t ⟨J_ik,t, δ_t⟩)_ik from per-layer updates to outputs (N,K), and its adjoint.

    `layers` is keyed like `Blocks`. All layers have the same N and K.
    Source: Jang, Lee, Ryu 2024, section 2; the row form is derived in docs/theory.md.
    """

    layers: Mapping[str, LayerRows]

    @property
    def n_examples(self) -> int:
        return len(next(iter(self.layers.values())).counts)

    @property
    def n_outputs(self) -> int:
        return next(iter(self.layers.values())).g.shape[1]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape (m, n) of each layer's matrix."""
        return {name: rows.shape for name, rows in self.layers.items()}

    @property
    def nbytes(self) -> int:
        """Bytes held; the dense Jacobian would hold N·K·Σ m·n numbers."""
        return sum(r.x.nbytes + r.g.nbytes + r.counts.nbytes for r in self.layers.values())

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.layers.values())).x.dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.layers.values())).x.device

    def zeros(self) -> Float[Tensor, "N K"]:
        """Return outputs of zero, (N,K)."""
        return torch.zeros(self.n_examples, self.n_outputs, dtype=self.dtype, device=self.device)

    def forward(self, delta: Blocks) -> Float[Tensor, "N K"]:
        """Return Jδ, (N,K), for dense per-layer updates; a layer that `delta` lacks counts as zero."""
        total = self.zeros()
        for name, update in delta.items():
            rows = self.layers[name]
            total += rows.per_example(torch.bmm(rows.g, (rows.x @ update.T).unsqueeze(2)).squeeze(2))
        return total

    def adjoint(self, a: Float[Tensor, "N K"]) -> Blocks:
        """Return M_t = Σ_ik a_ik J_ik,t, (m,n) per layer."""
        return {name: rows.weighted(a).T @ rows.x for name, rows in self.layers.items()}

    def at(self, factors: Factors) -> FactoredPoint:
        """Return the products with (u, v) from which both J(uvᵀ) and (Mv, Mᵀu) are cheap.

        A layer that `factors` lacks counts as rank zero, and the adjoint has no entry for it.
        """
        return FactoredPoint(
            self,
            {name: product(self.layers[name].x, v) for name, (_, v) in factors.items()},
            {name: _stacked_product(self.layers[name].g, u) for name, (u, _) in factors.items()},
        )

    def gram(self) -> Float[Tensor, "NK NK"]:
        """Return Θ = J Jᵀ, (NK,NK): the tangent kernel, row i·K + k."""
        n, k = self.n_examples, self.n_outputs
        total = torch.zeros(n, k, n, k, dtype=self.dtype, device=self.device)
        for rows in self.layers.values():
            r = len(rows.x)
            step = max(1, _GRAM_ENTRIES // max(1, r * k * k))
            for start in range(0, r, step):
                part = slice(start, start + step)
                products = torch.einsum("rkm,slm->rksl", rows.g[part], rows.g)
                products *= (rows.x[part] @ rows.x.T)[:, None, :, None]
                half = products.new_zeros(len(products), k, n, k).index_add_(2, rows.example, products)
                total.index_add_(0, rows.example[part], half)
        return total.reshape(n * k, n * k)

    def dense(self) -> dict[str, Float[Tensor, "N K m n"]]:
        """Return every block J_ik,t, (N,K,m,n) per layer; for tests and small problems only."""
        blocks = {}
        for name, rows in self.layers.items():
            outer = torch.einsum("rkm,rn->rkmn", rows.g, rows.x)
            shape = (self.n_examples, *outer.shape[1:])
            blocks[name] = outer.new_zeros(shape).index_add_(0, rows.example, outer)
        return blocks

    def combine_outputs(self, C: Float[Tensor, "J K"]) -> Jacobian:
        """Return the Jacobian of the outputs z ↦ C z, such as the contrasts of a softmax."""
        C = C.to(self.device, self.dtype)
        return self._map(lambda rows: replace(rows, g=torch.einsum("jk,rkm->rjm", C, rows.g).contiguous()))

    def select(self, index: Sequence[int] | Int[Tensor, " S"]) -> Jacobian:
        """Return the Jacobian of the examples `index`, in that order."""
        chosen = torch.as_tensor(index, dtype=torch.long, device=self.device)
        return self._map(lambda rows: rows.select(chosen))

    def only(self, names: Sequence[str]) -> Jacobian:
        """Return the Jacobian with respect to some of the layers."""
        return Jacobian({name: self.layers[name] for name in names})

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Jacobian:
        """Return the Jacobian in another precision or on another device."""
        where = self.device if device is None else torch.device(device)
        return self._map(
            lambda rows: LayerRows(rows.x.to(where, dtype), rows.g.to(where, dtype), rows.counts.to(where))
        )

    def _map(self, change: Callable[[LayerRows], LayerRows]) -> Jacobian:
        return Jacobian({name: change(rows) for name, rows in self.layers.items()})


def product(matrix: Float[Tensor, "d e"], columns: Float[Tensor, "e r"]) -> Float[Tensor, "d r"]:
    """Return matrix · columns for few columns, stored by columns.

    It is computed as the transpose of columnsᵀ · matrixᵀ: a few contiguous rows on the left take half the
    time of a few columns on the right, or less. Columns that are not stored so are copied first.
    """
    transposed: Tensor = columns.T.contiguous() @ matrix.T
    return transposed.T


def _stacked_product(g: Float[Tensor, "R K m"], u: Float[Tensor, "m r"]) -> Float[Tensor, "R K r"]:
    flat = product(g.flatten(0, 1), u)
    return flat.reshape(*g.shape[:2], u.shape[1])


def concatenate(parts: Sequence[Jacobian]) -> Jacobian:
    """Return the Jacobian of all the parts' examples, one part after the other."""
    return Jacobian(
        {
            name: LayerRows(
                torch.cat([part.layers[name].x for part in parts]),
                torch.cat([part.layers[name].g for part in parts]),
                torch.cat([part.layers[name].counts for part in parts]),
            )
            for name in parts[0].layers
        }
    )
