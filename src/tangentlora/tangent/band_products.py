"""Rows whose output-gradients live in separate bands of columns, such as the heads of an attention layer.

If every example has as many rows in each of H bands of w columns, M_t = Σ_ρ ĝ_ρ x_ρᵀ is a stack of H
products (w,R/H)·(R/H,n): an H-th of the work, and g takes an H-th of the memory. Rows of different bands are
orthogonal, and so are the columns that they span.
The bands are found from the zeros of g and from nothing else. Derived; docs/theory.md, "Rows".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.operator import Products
from tangentlora.tangent.rows import Rows, combine, lengths, orthonormal

_BANDED = 2**18  # entries of g from which bands pay: below, a dozen small products cost more than a large one


@final
@dataclass(frozen=True, eq=False)
class BandedRows(Rows):
    """Rows of which example i has `o` in each band, band after band; `bands` is g without its zeros.

    Row (i, h, j) of x, in this order, has the output-gradients bands[h, i, j] on the columns hw to (h+1)w.
    """

    x: Float[Tensor, "R n"]
    bands: Float[Tensor, "H N o K w"]
    counts: Int[Tensor, " N"]

    @property
    def g(self) -> Float[Tensor, "R K m"]:  # type: ignore[override]
        """All columns of the output-gradients, made anew each time; no product asks for them."""
        h, n, own, k, w = self.bands.shape
        full = self.bands.new_zeros(n, h, own, k, h, w)
        full.diagonal(dim1=1, dim2=4).copy_(self.bands.permute(1, 2, 3, 4, 0))
        return full.reshape(n * h * own, k, h * w)

    @property
    def held(self) -> Float[Tensor, "H N o K w"]:
        """The bands."""
        return self.bands

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of the weight matrix."""
        return self.bands.shape[0] * self.bands.shape[4], self.x.shape[1]

    @property
    def n_outputs(self) -> int:
        return self.bands.shape[3]

    @property
    def owners(self) -> Int[Tensor, " S"]:
        """The example of each row of a band."""
        return torch.arange(len(self.counts), device=self.x.device).repeat_interleave(self.bands.shape[2])

    def split(self, rows: Float[Tensor, "R p"]) -> Float[Tensor, "H S p"]:
        """Return the rows band by band: a view where an example has one in each."""
        h, n, own, *_ = self.bands.shape
        return rows.reshape(n, h, own, rows.shape[1]).transpose(0, 1).reshape(h, n * own, rows.shape[1])

    def _joined(self, parts: Float[Tensor, "H S ..."]) -> Float[Tensor, "R ..."]:
        """Return in the order of the rows what was computed band by band."""
        h, n, own, *_ = self.bands.shape
        apart = parts.reshape(h, n, own, *parts.shape[2:])
        return apart.transpose(0, 1).reshape(h * n * own, *parts.shape[2:])

    def _norms(self) -> Float[Tensor, "R K"]:
        return self._joined(lengths(self.bands).flatten(1, 2))

    def times(self, u: Float[Tensor, "m r"]) -> Float[Tensor, "R K r"]:
        """Return g_ρkᵀ u."""
        h, n, own, k, w = self.bands.shape
        products = torch.bmm(self.bands.reshape(h, n * own * k, w), u.reshape(h, w, u.shape[1]))
        return self._joined(products.reshape(h, n * own, k, u.shape[1]))

    def inner(self, delta: Float[Tensor, "m n"]) -> Float[Tensor, "R K"]:
        """Return ⟨g_ρk x_ρᵀ, δ⟩."""
        h, _, _, _, w = self.bands.shape
        moved = torch.bmm(self.split(self.x), delta.reshape(h, w, delta.shape[1]).mT)  # (H,S,w)
        return self._joined((self.bands.flatten(1, 2) @ moved.unsqueeze(3)).squeeze(3))

    def pull(self, a: Float[Tensor, "N K"], rows: Float[Tensor, "R p"]) -> Float[Tensor, "m p"]:
        """Return Σ_ρ ĝ_ρ rows_ρᵀ, ĝ_ρ = Σ_k a_ik g_ρk; with the inputs x for rows that is M_t."""
        w = self.bands.shape[4]
        if a.shape[1] == 1 and rows.shape[1] <= w:  # then weighting the rows is less work
            bands = self.bands.flatten(1, 3)
            return torch.bmm(bands.mT, self.split(a[self.example] * rows)).flatten(0, 1)
        weighted = (self.bands * a[:, None, :, None]).sum(3).flatten(1, 2)
        return torch.bmm(weighted.mT, self.split(rows)).flatten(0, 1)

    def pull_each(self, rows: Float[Tensor, "R p"]) -> Float[Tensor, "N K m p"]:
        """Return Σ_{ρ∈i} g_ρk rows_ρᵀ for every example and output."""
        h, n, own, k, w = self.bands.shape
        wide = rows.reshape(n, h, own, rows.shape[1]).transpose(0, 1)
        pulled = self.bands.flatten(3).mT @ wide  # (H,N,Kw,p)
        return pulled.reshape(h, n, k, w, rows.shape[1]).permute(1, 2, 0, 3, 4).flatten(2, 3)

    def products(self, a: Float[Tensor, "N K"]) -> Products:
        """Return the products with M_t and M_tᵀ, which is formed: with bands that is cheap."""
        M = self.pull(a, self.x)
        return (lambda V: M @ V, lambda U: M.T @ U)

    def combined(self, C: Float[Tensor, "J K"]) -> BandedRows:
        """Return the rows of the outputs z ↦ C z."""
        return replace(self, bands=combine(C, self.bands))

    def converted(self, dtype: torch.dtype, where: torch.device) -> BandedRows:
        """Return the rows in a precision and on a device, each band in one piece."""
        bands = self.bands.to(where, dtype).contiguous()
        return BandedRows(self.x.to(where, dtype), bands, self.counts.to(where))

    def with_inputs(self, x: Float[Tensor, "R _n"]) -> BandedRows:
        """Return rows of the same output-gradients with other inputs."""
        return BandedRows(x, self.bands, self.counts)

    def select(self, index: Int[Tensor, " S"]) -> BandedRows:
        """Return the rows of the examples `index`, in that order."""
        h, n, own, *_ = self.bands.shape
        x = self.x.reshape(n, h * own, self.x.shape[1])[index].flatten(0, 1)
        return BandedRows(x, self.bands[:, index], self.counts[index])

    def run(self, start: int, stop: int) -> BandedRows:
        """Return the rows of the examples from `start` to before `stop`, as views."""
        each = self.bands.shape[0] * self.bands.shape[2]
        return BandedRows(
            self.x[start * each : stop * each], self.bands[:, start:stop], self.counts[start:stop]
        )

    def column_basis(self) -> Float[Tensor, "m p"] | None:
        """Return an orthonormal basis of the columns that g spans, band by band; None where it is all."""
        bases = [orthonormal(band.flatten(0, 2)) for band in self.bands]
        found = [basis for basis in bases if basis is not None]  # all or none: each has as many rows
        return torch.block_diag(*found) if found else None  # type: ignore[no-untyped-call]

    def project(
        self, row_basis: Float[Tensor, "n q"] | None, column_basis: Float[Tensor, "m p"] | None
    ) -> Rows:
        """Return the rows in coordinates AᵀδB; the bands stay where A is block by block as they are."""
        x = self.x if row_basis is None else self.x @ row_basis
        if column_basis is None:
            return self.with_inputs(x)
        h, w, p = len(self.bands), self.bands.shape[4], column_basis.shape[1]
        if p % h == 0:
            apart = column_basis.reshape(h, w, h, p // h)
            own = apart.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (H,w,p/H)
            if int(apart.count_nonzero()) == int(own.count_nonzero()):
                return BandedRows(x, self.bands @ own[:, None, None], self.counts)
        return LayerRows(x, self.g @ column_basis, self.counts)


def in_bands(rows: Rows) -> Rows:
    """Return the rows without the zeros of g, where they lie in bands and are many; else as they are."""
    if isinstance(rows, LayerRows) and rows.g.numel() >= _BANDED:
        return find_bands(rows) or rows
    return rows


def unfolded(rows: Rows) -> Rows:
    """Return the rows with all columns of g where they are few, which then make one product; else as is."""
    m, _ = rows.shape
    few = len(rows.x) * rows.n_outputs * m < _BANDED
    return LayerRows(rows.x, rows.g, rows.counts) if few else rows


def find_bands(rows: LayerRows) -> BandedRows | None:
    """Return the rows in the finest bands of equal width in which every example has equally many, or None.

    They are looked for in one order, from the first columns to the last, the same for all examples.
    """
    total, k, m = rows.g.shape
    n = len(rows.counts)
    each = total // n if n else 0
    if each < 2 or not bool((rows.counts == each).all()):
        return None
    used = torch.zeros(each, m, dtype=torch.bool, device=rows.g.device)
    step = max(1, n // 16)  # the mask of a sixteenth of the examples at a time
    for start in range(0, n, step):
        part = rows.g[start * each : (start + step) * each]
        used |= (part != 0).any(1).reshape(-1, each, m).any(0)
    for h in range(each, 1, -1):
        if each % h == 0 and m % h == 0:
            filled = used.reshape(h, each // h, h, m // h).any(3).any(1)
            if not bool(filled.fill_diagonal_(False).any()):
                apart = rows.g.reshape(n, h, each // h, k, h, m // h)
                bands = torch.stack([apart[:, i, :, :, i] for i in range(h)])
                return BandedRows(rows.x, bands, rows.counts)
    return None
