"""The Jacobian read from a store shard by shard: for more rows than memory holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from tangentlora.tangent.operator import Extent, Operator, Products
from tangentlora.tangent.rows import Rows
from tangentlora.tangent.shard_passes import LARGE, ShardPasses
from tangentlora.tangent.store import read_manifest, read_shard
from tangentlora.tangent.store_writer import ShardEntry
from tangentlora.tangent.stored_point import StoredPoint
from tangentlora.tangent.tangent import is_centred


@final
@dataclass(frozen=True, eq=False)
class StoredJacobian(Operator):
    """J of the examples in some shards of a store, in the order of their numbers.

    `index` holds the numbers of the examples, smallest first. Every product is one pass over the shards, so
    what can be had from one pass is. Raises InputError, from any method, where a shard cannot be read.
    """

    passes: ShardPasses
    index: Int[Tensor, " N"]

    @property
    def n_examples(self) -> int:
        return len(self.index)

    @property
    def n_outputs(self) -> int:
        return self.passes.n_outputs

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape (m, n) of each layer's matrix."""
        return {target.name: target.shape for target in self.passes.targets}

    @property
    def nbytes(self) -> int:
        """Bytes that all rows would take in memory in this precision."""
        numbers = sum(
            extent.rows * (self.shapes[name][1] + self.n_outputs * self.shapes[name][0])
            for name, extent in self.extents.items()
        )
        return numbers * torch.finfo(self.dtype).bits // 8

    @property
    def dtype(self) -> torch.dtype:
        return self.passes.precision

    @property
    def device(self) -> torch.device:
        return self.passes.where

    def blocks(self) -> Iterator[tuple[Int[Tensor, " B"], Jacobian]]:
        """Yield the places of each shard's examples and their Jacobian, all of it in memory."""
        for places, shard in zip(self.passes.order, self.passes.shards, strict=True):
            rows = self.passes.read(shard)
            yield places, Jacobian({name: self.passes.made(part) for name, part in rows.items()})

    @cached_property
    def extents(self) -> dict[str, Extent]:
        """How large the rows of each layer are."""

        def work(places: Int[Tensor, " B"], layers: dict[str, Rows]) -> dict[str, Extent]:
            sizes = {name: total[name].new_zeros(len(places), self.n_outputs) for name in layers}
            for run, piece in self.passes.pieces(layers, layers):
                for name, extent in piece.extents.items():
                    sizes[name][run] = extent.sizes
            return {
                name: Extent(len(rows.x), int(rows.counts.max()), sizes[name])
                for name, rows in layers.items()
            }

        total = {name: self.zeros() for name in self.shapes}
        found = []
        for places, extents in self.passes.each(work):
            found.append(extents)
            for name, extent in extents.items():
                total[name][places] = extent.sizes
        return {
            name: Extent(
                sum(extents[name].rows for extents in found),
                max(extents[name].longest for extents in found),
                sizes,
            )
            for name, sizes in total.items()
        }

    @property
    def largest(self) -> tuple[float, float]:
        """Bounds on the |entries| of all x and g: those of float32, in which they are stored.

        NaN where a number is not finite: then no size is, of a row that has it.
        """
        finite = all(bool(torch.isfinite(extent.sizes).all()) for extent in self.extents.values())
        bound = torch.finfo(torch.float32).max if finite else math.nan
        return bound, bound * self.n_outputs  # of combined outputs too

    def forward(self, delta: Blocks) -> Float[Tensor, "N K"]:
        """Return Jδ, (N,K), for dense per-layer updates; a layer that `delta` lacks counts as zero."""
        return self.passes.outputs_of(delta, lambda piece: piece.forward(delta))

    def adjoint(self, a: Float[Tensor, "N K"], names: Sequence[str] | None = None) -> Blocks:
        """Return M_t = Σ_ik a_ik J_ik,t, (m,n), for every layer, or for those named."""
        total = {name: a.new_zeros(self.shapes[name]) for name in (self.shapes if names is None else names)}

        def work(places: Int[Tensor, " B"], layers: dict[str, Rows]) -> Blocks:
            parts, own = {name: torch.zeros_like(M) for name, M in total.items()}, a[places]
            for name, part in parts.items():
                for run, piece in self.passes.pieces(layers, [name], LARGE):
                    part += piece.adjoint(own[run])[name]
            return parts

        for _, parts in self.passes.each(work):
            for name, part in parts.items():
                total[name] += part
        return total

    def adjoint_products(self, a: Float[Tensor, "N K"]) -> dict[str, Products]:
        """Return the products with each M_t and M_tᵀ, which are formed in one pass."""

        def products(M: Tensor) -> Products:
            return (lambda V: M @ V, lambda U: M.T @ U)

        return {name: products(M) for name, M in self.adjoint(a).items()}

    def at(self, factors: Factors) -> StoredPoint:
        """Return the operator at (u, v). A layer that `factors` lacks counts as rank zero."""
        return StoredPoint(self.passes, factors, self.dtype)

    def gram(self, weights: Mapping[str, float] | None = None) -> Float[Tensor, "NK NK"]:
        """Return Θ = Σ_t w_t² J_t J_tᵀ, (NK,NK), from every pair of shards."""
        n, k = self.n_examples, self.n_outputs
        total = torch.zeros(n, k, n, k, dtype=self.dtype, device=self.device)
        for rows, block in self.blocks():
            for columns, other in self.blocks():
                total[rows[:, None], :, columns] = cross_gram(block, other, weights).transpose(1, 2)
        return total.reshape(n * k, n * k)

    def select(self, index: Sequence[int] | Int[Tensor, " S"]) -> Jacobian:
        """Return the rows of few examples, in that order, in memory."""
        wanted = torch.as_tensor(index, dtype=torch.long, device=self.device)
        parts, places_of = [], []
        for places, shard in zip(self.passes.order, self.passes.shards, strict=True):
            here = torch.isin(places, wanted).nonzero().flatten()
            chosen = {name: rows.select(here.cpu()) for name, rows in self.passes.read(shard).items()}
            parts.append(Jacobian({name: self.passes.made(rows) for name, rows in chosen.items()}))
            places_of.append(places[here])
        found = torch.cat(places_of)
        order = torch.empty(self.n_examples, dtype=torch.long, device=self.device)
        order[found] = torch.arange(len(found), device=self.device)
        return concatenate(parts).select(order[wanted])

    def within(self, bases: Factors) -> Jacobian:
        """Return the Jacobian in the coordinates AᵀδB of a few columns (A_t, B_t), its rows in memory.

        Its rows are (g_ρkᵀA, x_ρᵀB), one pass. Layers that `bases` lacks are left out.
        """

        def work(places: Int[Tensor, " B"], layers: dict[str, Rows]) -> Jacobian:
            parts = [piece.within(bases) for _, piece in self.passes.pieces(layers, bases)]
            return concatenate(parts)

        places, parts = zip(*self.passes.each(work), strict=True)
        return concatenate(parts).select(torch.cat(places).argsort())

    def combine_outputs(self, C: Float[Tensor, "J K"]) -> StoredJacobian:
        """Return the operator of the outputs z ↦ C z, such as the contrasts of a softmax."""
        return replace(self, passes=self.passes.combined(C))

    def _converted(self, dtype: torch.dtype, where: torch.device) -> StoredJacobian:
        return replace(self, passes=self.passes.to(dtype, where), index=self.index.to(where))


def in_blocks(
    folder: Path, shards: Sequence[ShardEntry], targets: Sequence[Target]
) -> tuple[Float[Tensor, "N K"], StoredJacobian]:
    """Return the outputs f0 (N,K) and the Jacobian, as stored, of the examples in these shards of a store.

    That of a centred tangent is of its K−1 contrasts.
    Raises InputError where a shard cannot be read.
    """
    read = [read_shard(folder, shard, ()) for shard in shards]
    index, position = torch.cat([part[0] for part in read]).sort()
    places = torch.empty_like(position)
    places[position] = torch.arange(len(position))
    order = torch.split(places, [shard.examples for shard in shards])
    f0 = torch.cat([part[1] for part in read])[position]
    held = f0.shape[1] - 1 if is_centred(read_manifest(folder)["identity"]) else f0.shape[1]
    passes = ShardPasses(folder, tuple(shards), tuple(targets), order, held)
    return f0, StoredJacobian(passes, index)
