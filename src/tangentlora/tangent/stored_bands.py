"""Output-gradients as they are stored: for each row the run of columns that its non-zero numbers lie in."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.tangent.band_products import BandedRows
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.rows import Rows


def to_bands(g: Float[Tensor, "R K m"]) -> tuple[Float[Tensor, "R K w"], Int[Tensor, " R"] | None]:
    """Return g[ρ, :, s_ρ : s_ρ + w] and the starts s, w the widest run of a row; (g, None) where w = m."""
    m = g.shape[2]
    used = (g != 0).any(1)
    some = used.any(1)
    first = used.int().argmax(1)
    last = m - 1 - used.flip(1).int().argmax(1)
    width = int((last - first + 1)[some].max()) if some.any() else m
    if width == m:
        return g, None
    start = torch.where(some, first, 0).clamp(max=m - width)
    return g.gather(2, _columns(g, start, width)), start


def from_bands(band: Float[Tensor, "R K w"], start: Int[Tensor, " R"], m: int) -> Float[Tensor, "R K m"]:
    """Return the rows with all their m columns, zero outside the bands."""
    full = band.new_zeros(*band.shape[:2], m)
    return full.scatter_(2, _columns(band, start, band.shape[2]), band)


def rows_from_bands(
    x: Float[Tensor, "R n"],
    band: Float[Tensor, "R K w"],
    start: Int[Tensor, " R"],
    counts: Int[Tensor, " N"],
    m: int,
) -> Rows:
    """Return rows that were stored as bands: as the bands of all examples where these have them in common.

    Those are the finest of equal width in which every example has equally many rows, in one order. Where each
    row fills its own, nothing is copied.
    """
    n, (total, k, width) = len(counts), band.shape
    each = total // n if n else 0
    if each > 1 and bool((counts == each).all()):
        for h in range(each, 1, -1):
            w = m // h
            if each % h or m % h or width > w:
                continue
            offset = start - w * torch.arange(h).repeat_interleave(each // h).repeat(n)
            if _within(band, offset, w):
                held = _moved(band, offset, w) if width < w or bool(offset.any()) else band
                return BandedRows(x, held.reshape(n, h, each // h, k, w).transpose(0, 1), counts)
    return LayerRows(x, from_bands(band, start, m), counts)


def _within(band: Float[Tensor, "R K w"], offset: Int[Tensor, " R"], width: int) -> bool:
    """Say whether each row is zero but for `width` columns, from whose first its run begins at `offset`."""
    beyond = (offset < 0) | (offset + band.shape[2] > width)
    if not bool(beyond.any()):
        return True
    columns = _columns(band[beyond], offset[beyond], band.shape[2])
    outside = (columns < 0) | (columns >= width)
    return not bool((outside & (band[beyond] != 0)).any())


def _moved(band: Float[Tensor, "R K w"], offset: Int[Tensor, " R"], width: int) -> Float[Tensor, "R K width"]:
    """Return the `width` columns of each row from whose first its run begins at `offset`."""
    place = _columns(band, -offset, width)
    there = (place >= 0) & (place < band.shape[2])
    return band.gather(2, place.clamp(0, band.shape[2] - 1)) * there


def _columns(g: Float[Tensor, "R K _c"], start: Int[Tensor, " R"], width: int) -> Int[Tensor, "R K w"]:
    columns = start[:, None, None] + torch.arange(width)
    return columns.expand(-1, g.shape[1], -1)
