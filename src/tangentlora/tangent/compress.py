"""Exact compression of the token axis: as many rows per example as the output-gradients have rank.

Stack the output-gradients of one example as G ∈ R^{L×Km}. With G ≈ U Uᵀ G, U ∈ R^{L×ρ} orthonormal,

    J_k = Σ_l g_lk x_lᵀ = Σ_ρ (Uᵀ G_k)_ρ (Uᵀ X)_ρᵀ ,

so ρ rows stand for L tokens, for all k at once. For a masked-LM prompt and the last layer ρ is 1 for the query and
at most the number of heads for the value. Derived; see docs/theory.md, "Rows".
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.tangent.jacobian import LayerRows

TOLERANCE = 1e-6
"""Largest relative Frobenius norm of what compression may drop from an example's output-gradients: float32 rounding."""


def compress_tokens(
    x: Float[Tensor, "B L n"], g: Float[Tensor, "B K L m"], tolerance: float = TOLERANCE
) -> LayerRows:
    """Return the rows of B examples, ‖G − UUᵀG‖_F ≤ tolerance·‖G‖_F for each, on the CPU in the precision given.

    The eigenvalues of G Gᵀ (L,L) are found in float64, so that the squares of float32 numbers lose nothing.
    """
    wide = g.double()
    gram = torch.einsum("bkli,bkji->blj", wide, wide)
    energy, vectors = torch.linalg.eigh(gram)
    energy, vectors = energy.flip(-1).clamp(min=0), vectors.flip(-1)
    # tail[j] is what is lost by keeping the first j directions
    tail = energy.flip(-1).cumsum(-1).flip(-1)
    keep = tail > tolerance**2 * energy.sum(-1, keepdim=True)
    counts = keep.sum(-1)
    most = int(counts.max())
    basis = vectors[..., :most].to(g.dtype)
    rows_g = torch.einsum("blr,bklm->brkm", basis, g)
    rows_x = torch.einsum("blr,bln->brn", basis, x)
    chosen = keep[:, :most]
    return LayerRows(rows_x[chosen].cpu(), rows_g[chosen].contiguous().cpu(), counts.cpu())
