"""Output-gradients as bands: for each row the run of columns that its non-zero numbers lie in."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


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


def _columns(g: Float[Tensor, "R K _c"], start: Int[Tensor, " R"], width: int) -> Int[Tensor, "R K w"]:
    columns = start[:, None, None] + torch.arange(width)
    return columns.expand(-1, g.shape[1], -1)
