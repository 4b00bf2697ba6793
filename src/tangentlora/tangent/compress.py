"""Exact compression of what was captured: few rows per example, and short ones.

Stack the output-gradients of one example as G ∈ R^{L×Km}. With G ≈ U Uᵀ G, U ∈ R^{L×ρ} orthonormal,

    J_k = Σ_l g_lk x_lᵀ = Σ_ρ (Uᵀ G_k)_ρ (Uᵀ X)_ρᵀ ,

so ρ rows stand for L tokens, for all k at once. For a masked-LM prompt and the last layer ρ is 1 for the
query and at most the number of heads for the value. `column_blocks` then shortens the rows themselves.
Derived; see docs/theory.md, "Rows".
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tangentlora.tangent.column_blocks import split_columns
from tangentlora.tangent.layer_rows import LayerRows

TOLERANCE = 1e-6
"""What compression may drop of the output-gradients, relative to their norm: the rounding of float32."""


def compress_rows(
    x: Float[Tensor, "B L n"], g: Float[Tensor, "B K L m"], tolerance: float = TOLERANCE
) -> LayerRows:
    """Return the rows of B examples in the fewest numbers: tokens compressed, then columns split in blocks.

    The Jacobian of each example moves by at most tolerance·‖G‖_F·‖X‖₂; each step may drop half of the energy
    tolerance²·‖G‖_F².
    """
    share = tolerance / math.sqrt(2)
    return split_columns(compress_tokens(x, g, share), share)


def compress_tokens(
    x: Float[Tensor, "B L n"], g: Float[Tensor, "B K L m"], tolerance: float = TOLERANCE
) -> LayerRows:
    """Return the rows of B examples, ‖G − UUᵀG‖_F ≤ tolerance·‖G‖_F for each.

    So the Jacobian moves by at most tolerance·‖G‖_F·‖X‖₂. Tokens without any gradient are left out. Where the
    others are independent, nothing can be dropped, and they stay as they are, to the bit. Else U is found
    and applied in float64, where squares of float32 numbers lose nothing (and on the CPU, as not every device
    knows float64); the rows are rounded to the precision of g, and never below float32.
    """
    dtype = torch.promote_types(g.dtype, torch.float32)
    x, g, live = _drop_silent(x.cpu().to(dtype), g.cpu().to(dtype))
    wide = g.double()
    products = (wide @ wide.mT).sum(1)
    limit = tolerance**2 * products.diagonal(dim1=1, dim2=2).sum(-1)
    whole = _independent(products, live, limit)
    if whole.all():
        return LayerRows(x[live], g.transpose(1, 2)[live], live.sum(-1))
    keep, basis = live, torch.eye(live.shape[1], dtype=products.dtype).repeat(len(live), 1, 1)
    energy, vectors = torch.linalg.eigh(products[~whole])
    energy, basis[~whole] = energy.flip(-1), vectors.flip(-1)
    # what is lost of ‖G‖² by keeping the first j directions
    dropped = energy.flip(-1).cumsum(-1).flip(-1)
    keep[~whole] = dropped > limit[~whole, None]
    counts = keep.sum(-1)
    used = keep.any(0)
    keep, basis = keep[:, used], basis[..., used]
    rows_x = (basis.mT @ x.double())[keep]
    rows_g = (basis.mT.unsqueeze(1) @ wide).transpose(1, 2)[keep]
    return LayerRows(rows_x.to(dtype), rows_g.to(dtype), counts)


def _drop_silent(
    x: Float[Tensor, "B L n"], g: Float[Tensor, "B K L m"]
) -> tuple[Float[Tensor, "B S n"], Float[Tensor, "B K S m"], Bool[Tensor, "B S"]]:
    """Return S ≤ L tokens per example, first those that have a gradient, and which these are."""
    live = g.abs().amax((1, 3)) > 0
    most = int(live.sum(1).max())
    if most == live.shape[1]:
        return x, g, live
    order = live.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    x = x.gather(1, order[:, :, None].expand(-1, -1, x.shape[2]))
    g = g.gather(2, order[:, None, :, None].expand(-1, g.shape[1], -1, g.shape[3]))
    return x, g, live.gather(1, order)


def _independent(
    products: Float[Tensor, "B S S"], live: Bool[Tensor, "B S"], limit: Float[Tensor, " B"]
) -> Bool[Tensor, " B"]:
    """Return for which examples every eigenvalue of the live tokens' Gram matrix exceeds the limit."""
    shift = torch.where(live, -limit[:, None], 1.0)
    found: Bool[Tensor, " B"] = torch.linalg.cholesky_ex(products + torch.diag_embed(shift)).info == 0
    return found
