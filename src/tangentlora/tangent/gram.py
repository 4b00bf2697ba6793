"""Inner products of Jacobians: Θ[ik, jl] = Σ_t ⟨J_ik,t , J'_jl,t⟩ = Σ_t Σ_ρσ ⟨g_ρk, g'_σl⟩⟨x_ρ, x'_σ⟩."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from tangentlora.tangent.jacobian import Jacobian
    from tangentlora.tangent.layer_rows import LayerRows

_ENTRIES = 2**25  # entries of the row-by-row products that are held at a time: 256 MB in float64


def cross_gram(one: Jacobian, other: Jacobian) -> Float[Tensor, "n K p K"]:
    """Return Θ[i, k, j, l] of the examples of one Jacobian and those of another of the same layers."""
    (n, k), (p, _) = one.zeros().shape, other.zeros().shape
    total = torch.zeros(n, k, p, k, dtype=one.dtype, device=one.device)
    for name, rows in one.layers.items():
        for (g, x, example), (h, y, there) in _pairs(rows, other.layers[name]):
            step = max(1, _ENTRIES // max(1, len(y) * k * k))
            for start in range(0, len(x), step):
                part = slice(start, start + step)
                products = torch.einsum("rkm,slm->rksl", g[part], h)
                products *= (x[part] @ y.T)[:, None, :, None]
                half = products.new_zeros(len(products), k, p, k).index_add_(2, there, products)
                total.index_add_(0, example[part], half)
    return total


def _pairs(
    rows: LayerRows, others: LayerRows
) -> Iterator[tuple[tuple[Tensor, Tensor, Int[Tensor, " S"]], tuple[Tensor, Tensor, Int[Tensor, " S"]]]]:
    """Yield g, x and examples of both, band by band where they have bands: different ones are orthogonal."""
    here, there = rows.bands, others.bands
    if here is None or there is None or len(here.g) != len(there.g):
        yield (rows.g, rows.x, rows.example), (others.g, others.x, others.example)
        return
    bands = (here.g, here.split(rows.x), there.g, there.split(others.x))
    examples = (torch.arange(b.n_examples, device=b.g.device).repeat_interleave(b.own) for b in (here, there))
    example, other = examples
    for g, x, h, y in zip(*bands, strict=True):
        yield (g, x, example), (h, y, other)
