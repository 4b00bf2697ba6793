"""Exact compression of the token axis: as many rows per example as the output-gradients have rank.

Stack the output-gradients of one example as G ∈ R^{L×Km}. With G ≈ U Uᵀ G, U ∈ R^{L×ρ} orthonormal,

    J_k = Σ_l g_lk x_lᵀ = Σ_ρ (Uᵀ G_k)_ρ (Uᵀ X)_ρᵀ ,

so ρ rows stand for L tokens, for all k at once. For a masked-LM prompt and the last layer ρ is 1 for the
query and at most the number of heads for the value. Derived; see docs/theory.md, "Rows".
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.tangent.jacobian import LayerRows

TOLERANCE = 1e-6
"""What compression may drop of the output-gradients, relative to their norm: the rounding of float32."""


def compress_tokens(
    x: Float[Tensor, "B L n"], g: Float[Tensor, "B K L m"], tolerance: float = TOLERANCE
) -> LayerRows:
    """Return the rows of B examples, ‖G − UUᵀG‖_F ≤ tolerance·‖G‖_F for each.

    So the Jacobian moves by at most tolerance·‖G‖_F·‖X‖₂. U is found and applied in float64, where squares of
    float32 numbers lose nothing (and on the CPU, as not every device knows float64); the rows are rounded to
    the precision of g, and never below float32.
    """
    dtype = torch.promote_types(g.dtype, torch.float32)
    x, g = x.cpu().double(), g.cpu().double()
    energy, basis = torch.linalg.eigh(torch.einsum("bklm,bkjm->blj", g, g))
    energy, basis = energy.flip(-1), basis.flip(-1)
    # dropped[j] is what is lost of ‖G‖² by keeping the first j directions
    dropped = energy.flip(-1).cumsum(-1).flip(-1)
    keep = dropped > tolerance**2 * energy.sum(-1, keepdim=True)
    counts = keep.sum(-1)
    most = int(counts.max())
    keep, basis = keep[:, :most], basis[..., :most]
    rows_x = torch.einsum("blr,bln->brn", basis, x)[keep]
    rows_g = torch.einsum("blr,bklm->brkm", basis, g)[keep]
    return LayerRows(rows_x.to(dtype), rows_g.to(dtype), counts)
