"""The operator at factors in float32, for steps that are checked afterwards: half the bytes to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors, cast
from tangentlora.tangent.operator import Point, Weigh


@final
@dataclass(frozen=True, eq=False)
class RoughPoint(Point):
    """A point whose rows are in float32; what goes in and comes out is in float64."""

    single: Point

    def forward(self) -> Float[Tensor, "N K"]:
        """Return J(uvᵀ), (N,K)."""
        return self.single.forward().double()

    def adjoint(self, a: Float[Tensor, "N K"]) -> Factors:
        """Return (M_t v_t, M_tᵀ u_t) per layer."""
        return cast(self.single.adjoint(a.float()), torch.float64)

    def differential(self, d: Factors) -> Float[Tensor, "N K"]:
        """Return J(U vᵀ + u Vᵀ), (N,K)."""
        return self.single.differential(cast(d, torch.float32)).double()

    def curvature(self, d: Factors, weigh: Weigh) -> Factors:
        """Return the adjoint of weigh(differential(d))."""
        found = self.single.curvature(
            cast(d, torch.float32), lambda z, examples: weigh(z.double(), examples).float()
        )
        return cast(found, torch.float64)
