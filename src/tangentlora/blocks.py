"""The currency for per-layer matrices: dictionaries keyed by the full name of the adapted module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Blocks: TypeAlias = dict[str, Float[Tensor, "_m _n"]]
"""One matrix δ_t (m,n) per adapted layer t; the underscores say that m and n differ from layer to layer."""

Factors: TypeAlias = dict[str, tuple[Float[Tensor, "_m _r"], Float[Tensor, "_n _r"]]]
"""One pair (u_t, v_t) per adapted layer t, standing for δ_t = u_t v_tᵀ; r may differ from layer to layer."""


def multiply(factors: Factors) -> Blocks:
    """Return the dense updates δ_t = u_t v_tᵀ, (m,n) per layer."""
    return {name: u @ v.T for name, (u, v) in factors.items()}


def cast(factors: Factors, *to: Any) -> Factors:
    """Return the factors in a precision, on a device or as a tensor is: `to` is what `Tensor.to` takes."""
    return {name: (u.to(*to), v.to(*to)) for name, (u, v) in factors.items()}


def padded(factors: Factors, rank: int) -> Factors:
    """Return the factors with columns of zeros up to the rank, in every layer."""

    def wide(w: Tensor) -> Tensor:
        return torch.cat([w, w.new_zeros(len(w), rank - w.shape[1])], 1)

    return {name: (wide(u), wide(v)) for name, (u, v) in factors.items()}


def pack(factors: Factors, names: Iterable[str], like: Tensor) -> Float[Tensor, " d"]:
    """Return the factors of these layers as one vector, u_t before v_t; an empty one is as `like` is."""
    return torch.cat([like.new_zeros(0), *(w.flatten() for name in names for w in factors[name])])


def unpack(vector: Float[Tensor, " d"], like: Factors) -> Factors:
    """Return the factors, of the shapes and names of `like`, that `pack` made into a vector."""
    parts = iter(torch.split(vector, [w.numel() for pair in like.values() for w in pair]))
    return {
        name: (next(parts).reshape(u.shape), next(parts).reshape(v.shape)) for name, (u, v) in like.items()
    }
