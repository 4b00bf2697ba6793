"""Inner products of Jacobians: Θ[ik, jl] = Σ_t ⟨J_ik,t , J'_jl,t⟩ = Σ_t Σ_ρσ ⟨g_ρk, g'_σl⟩⟨x_ρ, x'_σ⟩."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.tangent.band_products import BandedRows
from tangentlora.tangent.rows import Rows

if TYPE_CHECKING:
    from tangentlora.tangent.jacobian import Jacobian

_ENTRIES = 2**24  # entries of the row-by-row products that are held at a time: 128 MB in float64
_PARTS = 8  # of a kernel of one Jacobian with itself, of which those on one side of the diagonal are computed


def cross_gram(
    one: Jacobian, other: Jacobian, weights: Mapping[str, float] | None = None
) -> Float[Tensor, "n K p K"]:
    """Return Θ[i, k, j, l] of the examples of one Jacobian and those of another of the same layers.

    With weights layer t counts w_t² times. That of one with itself is symmetric, and takes little more than
    half the work.
    """
    (n, k), (p, _) = one.zeros().shape, other.zeros().shape
    total = torch.zeros(n, k, p, k, dtype=one.dtype, device=one.device)
    symmetric = one is other
    for name, rows in one.layers.items():
        share = 1.0 if weights is None else weights[name] ** 2
        for (g, x, example), (h, y, there) in _pairs(rows, other.layers[name]):
            step = max(1, _ENTRIES // max(1, len(y) * k * k))
            if symmetric:
                step = min(step, max(1, -(-len(x) // _PARTS)))
            for start in range(0, len(x), step):
                part = slice(start, min(start + step, len(x)))
                for columns in (part, slice(part.stop, len(y))) if symmetric else (slice(0, len(y)),):
                    products = torch.einsum("rkm,slm->rksl", g[part], h[columns])
                    inputs = x[part] @ y[columns].T
                    products *= (inputs if share == 1.0 else share * inputs)[:, None, :, None]
                    i, by_row = _by_example(products, example[part], 0)
                    j, block = _by_example(by_row, there[columns], 2)
                    total[i, :, j] += block
                    if symmetric and columns is not part:
                        total[j, :, i] += block.permute(2, 3, 0, 1)
    return total


def _by_example(
    products: Float[Tensor, "*_shape"], example: Int[Tensor, " r"], axis: int
) -> tuple[slice, Float[Tensor, "*_shape"]]:
    """Return the run of examples that these rows belong to, in order, and their sums along an axis."""
    if not len(example):
        return slice(0, 0), products
    first, count = int(example[0]), int(example[-1] - example[0]) + 1
    here = slice(first, first + count)
    place = example - first
    if torch.equal(place, torch.arange(len(place), device=place.device)):
        return here, products  # a row for each example
    shape = list(products.shape)
    shape[axis] = count
    return here, products.new_zeros(shape).index_add_(axis, place, products)


def _pairs(
    rows: Rows, others: Rows
) -> Iterator[tuple[tuple[Tensor, Tensor, Int[Tensor, " S"]], tuple[Tensor, Tensor, Int[Tensor, " S"]]]]:
    """Yield g, x and examples of both, band by band where they have bands: different ones are orthogonal."""
    both = (rows, others)
    banded = [one for one in both if isinstance(one, BandedRows)]
    if len(banded) < 2 or len(banded[0].bands) != len(banded[1].bands):
        yield (rows.g, rows.x, rows.example), (others.g, others.x, others.example)
        return
    here, there = (
        zip(one.bands.flatten(1, 2), one.split(one.x), one.owners.expand(len(one.bands), -1), strict=True)
        for one in banded
    )
    yield from zip(here, there, strict=True)
