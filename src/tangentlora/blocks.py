"""The currency for per-layer matrices: dictionaries keyed by the full name of the adapted module."""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

Blocks: TypeAlias = dict[str, Float[Tensor, "_m _n"]]
"""One matrix δ_t (m,n) per adapted layer t; the underscores say that m and n differ from layer to layer."""

Factors: TypeAlias = dict[str, tuple[Float[Tensor, "_m _r"], Float[Tensor, "_n _r"]]]
"""One pair (u_t, v_t) per adapted layer t, standing for δ_t = u_t v_tᵀ; r may differ from layer to layer."""


def multiply(factors: Factors) -> Blocks:
    """Return the dense updates δ_t = u_t v_tᵀ, (m,n) per layer."""
    return {name: u @ v.T for name, (u, v) in factors.items()}
