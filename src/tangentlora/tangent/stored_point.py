"""The operator at factors (u, v) where the rows lie in a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.blocks import Factors, cast
from tangentlora.tangent.operator import Point, Weigh
from tangentlora.tangent.rows import Rows
from tangentlora.tangent.shard_passes import ShardPasses


@final
@dataclass(frozen=True, eq=False)
class StoredPoint(Point):
    """The operator at factors: every product is a pass over the shards, computed in the precision `work`."""

    passes: ShardPasses
    factors: Factors
    work: torch.dtype

    def rough(self) -> StoredPoint:
        """Return the point whose products are computed in float32, as the rows are stored: half the work."""
        return replace(self, work=torch.float32)

    @cached_property
    def _rows(self) -> ShardPasses:
        return self.passes.to(self.work)

    def _cast(self, factors: Factors) -> Factors:
        return cast({name: factors[name] for name in self.factors}, self.work)

    def forward(self) -> Float[Tensor, "N K"]:
        """Return J(uvᵀ), (N,K)."""
        factors = self._cast(self.factors)
        z = self._rows.outputs_of(factors, lambda piece: piece.at(factors).forward())
        return z.to(self.passes.precision)

    def adjoint(self, a: Float[Tensor, "N K"]) -> Factors:
        """Return (M_t v_t, M_tᵀ u_t) per layer."""
        factors, a = self._cast(self.factors), a.to(self.work)

        def work(places: Int[Tensor, " B"], layers: dict[str, Rows]) -> Factors:
            total, own = self._zeros(), a[places]
            for run, piece in self._rows.pieces(layers, factors):
                _add(total, piece.at(factors).adjoint(own[run]))
            return total

        return self._summed(work)

    def differential(self, d: Factors) -> Float[Tensor, "N K"]:
        """Return J(U vᵀ + u Vᵀ), (N,K)."""
        factors, along = self._cast(self.factors), self._cast(d)
        z = self._rows.outputs_of(factors, lambda piece: piece.along(factors, along)[1])
        return z.to(self.passes.precision)

    def curvature(self, d: Factors, weigh: Weigh) -> Factors:
        """Return the adjoint of weigh(differential(d)), in one pass."""
        factors, along = self._cast(self.factors), self._cast(d)

        def work(places: Int[Tensor, " B"], layers: dict[str, Rows]) -> Factors:
            total = self._zeros()
            for run, piece in self._rows.pieces(layers, factors):
                point, z = piece.along(factors, along)
                _add(total, point.adjoint(weigh(z.to(self.passes.precision), places[run]).to(self.work)))
            return total

        return self._summed(work)

    def _zeros(self) -> Factors:
        return {name: (torch.zeros_like(u), torch.zeros_like(v)) for name, (u, v) in self.factors.items()}

    def _summed(self, work: Callable[[Int[Tensor, " B"], dict[str, Rows]], Factors]) -> Factors:
        total = self._zeros()
        for _, part in self._rows.each(work):
            _add(total, part)
        return total


def _add(total: Factors, part: Factors) -> None:
    for name, pair in part.items():
        for sum_of, w in zip(total[name], pair, strict=True):
            sum_of += w
