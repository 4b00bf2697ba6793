"""Rows whose output-gradients live on few columns each, found from the numbers alone.

The value of token l reaches a readout at one token through head h with its attention weight p_hl: the
gradients are G = Σ_h p_h w_hᵀ with w_h on the columns of head h only. A basis of all of G mixes the heads,
and its rows are dense. Take blocks of columns of equal width w instead: with V_b an orthonormal basis of the
column space of the block G_b, ρ_b wide,

    G = Σ_b V_b (V_bᵀ G_b),    J_k = Σ_b (V_bᵀ G_k,b)ᵀ (V_bᵀ X),

so Σ ρ_b rows of n + Kw numbers stand for ρ rows of n + Km. Derived; see docs/theory.md, "Rows".
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tangentlora.tangent.layer_rows import LayerRows

_MOST_BLOCKS = 64
_MOST_GROWTH = 2
"""How many times as many rows blocks may make: in memory, where they are dense, rows are what costs."""
_MOST_ROWS = 128
"""Rows of an example up to which blocks are looked for: beyond, their Gram matrices cost too much."""


def split_columns(rows: LayerRows, tolerance: float) -> LayerRows:
    """Return rows that are zero outside one block of columns each, where these take fewer numbers.

    The blocks are those that are best for the example with most rows; they make twice as many rows at most.
    What is dropped of G is at most tolerance·‖G‖_F for each example. Rows without such structure are returned
    as they are.
    """
    if not 2 <= int(rows.counts.max()) <= _MOST_ROWS:
        return rows
    width = _best_width(rows.select(rows.counts.argmax()[None]), tolerance)
    if width is None:
        return rows
    x, g = rows.by_example(rows.x.double()), rows.by_example(rows.g.double())
    blocks = _blocks(g, width)
    energy, basis = torch.linalg.eigh(blocks @ blocks.mT)
    keep = _kept(energy, tolerance)
    found, before = int(keep.sum()), len(rows.x)
    fewer = found * _numbers(rows, width) < before * _numbers(rows, rows.shape[0])
    if not fewer or found > _MOST_GROWTH * before:
        return rows
    return _rows_in_blocks(rows, x, blocks, basis, keep)


def _numbers(rows: LayerRows, width: int) -> int:
    """Return how many numbers one row takes if g has that many columns."""
    return rows.shape[1] + rows.g.shape[1] * width


def _best_width(example: LayerRows, tolerance: float) -> int | None:
    """Return the width of blocks with which one example takes the fewest numbers, None for all columns."""
    g, m = example.g.double().unsqueeze(0), example.shape[0]
    limit = tolerance**2 * float(g.square().sum())
    best, least = None, len(example.x) * _numbers(example, m)
    for number in range(2, min(m, _MOST_BLOCKS) + 1):
        if m % number:
            continue
        width = m // number
        too_many = min(math.ceil(least / _numbers(example, width)), _MOST_GROWTH * len(example.x) + 1)
        # the first rows alone have as many directions as pivots, and mostly that is enough to say no
        few = _blocks(g[:, : math.ceil(too_many / number)], width)[0]
        gram = few @ few.mT
        gram.diagonal(dim1=1, dim2=2).sub_(limit)
        failed = torch.linalg.cholesky_ex(gram).info
        if int(torch.where(failed == 0, few.shape[1], failed - 1).sum()) >= too_many:
            continue
        blocks = _blocks(g, width)
        found = int(_kept(torch.linalg.eigvalsh(blocks @ blocks.mT), tolerance).sum())
        if found < too_many:
            best, least = width, found * _numbers(example, width)
    return best


def _blocks(g: Float[Tensor, "B r K m"], width: int) -> Float[Tensor, "B b r Kw"]:
    """Return the blocks G_b of each example's columns, side by side for all outputs."""
    return g.reshape(*g.shape[:3], -1, width).permute(0, 3, 1, 2, 4).flatten(3)


def _kept(energy: Float[Tensor, "B b r"], tolerance: float) -> Bool[Tensor, "B b r"]:
    """Return which directions stay when each example drops its weakest, up to tolerance² of its energy."""
    flat = energy.clamp(min=0).flatten(1)
    ordered, order = flat.sort(dim=1)
    lost = ordered.cumsum(1)
    kept = lost > tolerance**2 * lost[:, -1:]
    return torch.zeros_like(kept).scatter(1, order, kept).reshape(energy.shape)


def _rows_in_blocks(
    rows: LayerRows,
    x: Float[Tensor, "B r n"],
    blocks: Float[Tensor, "B b r Kw"],
    basis: Float[Tensor, "B b r r"],
    keep: Bool[Tensor, "B b r"],
) -> LayerRows:
    """Return the rows V_bᵀX and V_bᵀG_b of the kept directions, each g zero outside its own block."""
    example, block, direction = keep.nonzero(as_tuple=True)
    counts = keep.flatten(1).sum(1)
    vectors = basis[example, block, :, direction]
    k, m = rows.g.shape[1:]
    short = torch.bmm(vectors.unsqueeze(1), blocks[example, block]).to(rows.g.dtype)
    g = torch.zeros(len(example), k, keep.shape[1], m // keep.shape[1], dtype=rows.g.dtype)
    g[torch.arange(len(example)), :, block] = short.reshape(len(example), k, -1)
    split = LayerRows(vectors, g.flatten(2), counts)
    combined = (split.by_example(vectors) @ x)[torch.arange(int(counts.max())) < counts[:, None]]
    return LayerRows(combined.to(rows.x.dtype), split.g, counts)
