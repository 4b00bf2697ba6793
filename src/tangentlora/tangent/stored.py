"""The Jacobian read from a store block by block: for more rows than memory holds.

A block is a shard of the store: it is mapped into memory, turned into rows in float64, used and let go, while
the next is read ahead. Every product is one pass over all blocks, so what can be had from one pass is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.blocks import Blocks, Factors
from tangentlora.models.targets import Target
from tangentlora.tangent.gram import cross_gram
from tangentlora.tangent.jacobian import Jacobian, concatenate
from tangentlora.tangent.operator import Extent, Operator, Point, Products, Weigh
from tangentlora.tangent.store import read_shard
from tangentlora.tangent.store_writer import ShardEntry


@final
@dataclass(frozen=True, eq=False)
class StoredJacobian(Operator):
    """J of the examples in some shards of a store, in the order of their numbers; `C` combines their outputs.

    `index` holds the numbers of the examples, smallest first, and `order` for each block the places of its
    examples among them. Raises InputError, from any method, where a shard cannot be read.
    """

    folder: Path
    shards: tuple[ShardEntry, ...]
    targets: tuple[Target, ...]
    index: Int[Tensor, " N"]
    order: tuple[Int[Tensor, " _b"], ...]
    outputs: int
    C: Float[Tensor, "J K"] | None = None
    precision: torch.dtype = torch.float32
    where: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def n_examples(self) -> int:
        return len(self.index)

    @property
    def n_outputs(self) -> int:
        return self.outputs if self.C is None else len(self.C)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape (m, n) of each layer's matrix."""
        return {target.name: target.shape for target in self.targets}

    @property
    def nbytes(self) -> int:
        """Bytes that all rows would take in memory in this precision."""
        numbers = sum(
            extent.rows * (self.shapes[name][1] + self.n_outputs * self.shapes[name][0])
            for name, extent in self.extents.items()
        )
        return numbers * torch.finfo(self.precision).bits // 8

    @property
    def dtype(self) -> torch.dtype:
        return self.precision

    @property
    def device(self) -> torch.device:
        return self.where

    def blocks(self) -> Iterator[tuple[Int[Tensor, " B"], Jacobian]]:
        """Yield the places of some examples and their Jacobian in memory; the next is read meanwhile."""
        with ThreadPoolExecutor(1) as reader:
            waiting = reader.submit(self._read, 0)
            for number, places in enumerate(self.order):
                block = waiting.result()
                if number + 1 < len(self.order):
                    waiting = reader.submit(self._read, number + 1)
                yield places, block.to(self.precision, self.where)

    def _read(self, number: int) -> Jacobian:
        return Jacobian(read_shard(self.folder, self.shards[number], self.targets, self._combined)[2])

    def _combined(self, g: Float[Tensor, "R K w"]) -> Float[Tensor, "R J w"]:
        """Return the output-gradients as they are used, on the CPU: fewer numbers than were read."""
        g = g.to(self.precision)
        return g if self.C is None else torch.matmul(self.C.to("cpu", self.precision), g)

    @cached_property
    def extents(self) -> dict[str, Extent]:
        """How large the rows of each layer are."""
        found = [(places, block.extents) for places, block in self.blocks()]
        result = {}
        for name in self.shapes:
            sizes = self.zeros()
            for places, extents in found:
                sizes[places] = extents[name].sizes
            of_layer = [extents[name] for _, extents in found]
            longest = max((extent.longest for extent in of_layer), default=0)
            result[name] = Extent(sum(extent.rows for extent in of_layer), longest, sizes)
        return result

    def is_finite(self) -> bool:
        """Return whether every number is finite: no size is, of a row that has one which is not."""
        return all(bool(torch.isfinite(extent.sizes).all()) for extent in self.extents.values())

    def forward(self, delta: Blocks) -> Float[Tensor, "N K"]:
        """Return Jδ, (N,K), for dense per-layer updates; a layer that `delta` lacks counts as zero."""
        total = self.zeros()
        for places, block in self.blocks():
            total[places] = block.forward(delta)
        return total

    def adjoint(self, a: Float[Tensor, "N K"], names: Sequence[str] | None = None) -> Blocks:
        """Return M_t = Σ_ik a_ik J_ik,t, (m,n), for every layer, or for those named."""
        total = {name: a.new_zeros(self.shapes[name]) for name in (self.shapes if names is None else names)}
        for places, block in self.blocks():
            for name, part in block.adjoint(a[places], names).items():
                total[name] += part
        return total

    def adjoint_products(self, a: Float[Tensor, "N K"]) -> dict[str, Products]:
        """Return the products with each M_t and M_tᵀ, which are formed in one pass."""

        def products(M: Tensor) -> Products:
            return (lambda V: M @ V, lambda U: M.T @ U)

        return {name: products(M) for name, M in self.adjoint(a).items()}

    def at(self, factors: Factors) -> StoredPoint:
        """Return the operator at (u, v). A layer that `factors` lacks counts as rank zero."""
        return StoredPoint(self, factors)

    def gram(self) -> Float[Tensor, "NK NK"]:
        """Return Θ = J Jᵀ, (NK,NK), from every pair of blocks."""
        n, k = self.n_examples, self.n_outputs
        total = torch.zeros(n, k, n, k, dtype=self.dtype, device=self.device)
        for rows, block in self.blocks():
            for columns, other in self.blocks():
                total[rows[:, None], :, columns] = cross_gram(block, other).transpose(1, 2)
        return total.reshape(n * k, n * k)

    def select(self, index: Sequence[int] | Int[Tensor, " S"]) -> Jacobian:
        """Return the rows of few examples, in that order, in memory."""
        wanted = torch.as_tensor(index, dtype=torch.long, device=self.device)
        parts, places_of = [], []
        for places, block in self.blocks():
            here = torch.isin(places, wanted).nonzero().flatten()
            parts.append(block.select(here))
            places_of.append(places[here])
        found = torch.cat(places_of)
        order = torch.empty(self.n_examples, dtype=torch.long, device=self.device)
        order[found] = torch.arange(len(found), device=self.device)
        return concatenate(parts).select(order[wanted])

    def combine_outputs(self, C: Float[Tensor, "J K"]) -> StoredJacobian:
        """Return the operator of the outputs z ↦ C z, such as the contrasts of a softmax."""
        C = C.to(self.device, torch.float64)
        return replace(self, C=C if self.C is None else C @ self.C)

    def _converted(self, dtype: torch.dtype, where: torch.device) -> StoredJacobian:
        order = tuple(places.to(where) for places in self.order)
        C = None if self.C is None else self.C.to(where)
        return replace(self, precision=dtype, where=where, index=self.index.to(where), order=order, C=C)


@final
@dataclass(frozen=True, eq=False)
class StoredPoint(Point):
    """The operator at factors: every product is a pass over the blocks."""

    jacobian: StoredJacobian
    factors: Factors

    def forward(self) -> Float[Tensor, "N K"]:
        """Return J(uvᵀ), (N,K)."""
        total = self.jacobian.zeros()
        for places, block in self.jacobian.blocks():
            total[places] = block.at(self.factors).forward()
        return total

    def adjoint(self, a: Float[Tensor, "N K"]) -> Factors:
        """Return (M_t v_t, M_tᵀ u_t) per layer."""
        parts = (block.at(self.factors).adjoint(a[places]) for places, block in self.jacobian.blocks())
        return self._summed(parts)

    def differential(self, d: Factors) -> Float[Tensor, "N K"]:
        """Return J(U vᵀ + u Vᵀ), (N,K)."""
        total = self.jacobian.zeros()
        for places, block in self.jacobian.blocks():
            total[places] = block.at(self.factors).differential(d)
        return total

    def curvature(self, d: Factors, weigh: Weigh) -> Factors:
        """Return the adjoint of weigh(differential(d)), in one pass."""

        def parts() -> Iterator[Factors]:
            for places, block in self.jacobian.blocks():
                point = block.at(self.factors)
                yield point.adjoint(weigh(point.differential(d), places))

        return self._summed(parts())

    def _summed(self, parts: Iterator[Factors]) -> Factors:
        total = {name: (torch.zeros_like(u), torch.zeros_like(v)) for name, (u, v) in self.factors.items()}
        for part in parts:
            for name, pair in part.items():
                for sum_of, w in zip(total[name], pair, strict=True):
                    sum_of += w
        return total


def in_blocks(
    folder: Path, shards: Sequence[ShardEntry], targets: Sequence[Target]
) -> tuple[Float[Tensor, "N K"], StoredJacobian]:
    """Return the outputs f0 and the Jacobian of the examples in these shards of a store.

    Raises InputError where a shard cannot be read.
    """
    read = [read_shard(folder, shard, ()) for shard in shards]
    index, position = torch.cat([part[0] for part in read]).sort()
    places = torch.empty_like(position)
    places[position] = torch.arange(len(position))
    order = torch.split(places, [shard.examples for shard in shards])
    f0 = torch.cat([part[1] for part in read])[position]
    layers = StoredJacobian(folder, tuple(shards), tuple(targets), index, order, f0.shape[1])
    return f0, layers
