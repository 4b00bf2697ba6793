"""The Jacobian of all outputs with respect to all adapted weights, kept as rows g xᵀ and never formed.

For example i, output k and layer t the Jacobian block is a short sum of outer products over the rows ρ of i,

    J_ik,t = Σ_{ρ∈i} g_ρk x_ρᵀ  ∈ R^{m×n},

so every product with it is one tall matrix product over the R rows of all examples together. Changing the
representation (contrasts, restriction to the span, a subset) changes the cost and never the meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.blocks import Blocks, Factors
from tangentlora.errors import InputError
from tangentlora.tangent.band_products import BandedRows, in_bands
from tangentlora.tangent.gram import cross_gram
from tangentlora.tangent.layer_rows import LayerRows, product
from tangentlora.tangent.operator import Extent, Operator, Point, Products, Weigh, largest_of
from tangentlora.tangent.rough_point import RoughPoint
from tangentlora.tangent.rows import Rows

MANY = 2**25
"""Bytes of rows from which a product with few columns waits for them to be read: float32 then takes half."""


@dataclass(frozen=True, eq=False)
class FactoredPoint(Point):
    """The products x_ρᵀv and g_ρkᵀu of all rows."""

    jacobian: Jacobian
    xv: dict[str, Float[Tensor, "R r"]]
    gu: dict[str, Float[Tensor, "R K r"]]

    def forward(self) -> Float[Tensor, "N K"]:
        """Return J(uvᵀ), (N,K): ⟨J_ik, uvᵀ⟩ = Σ_ρ ⟨g_ρkᵀu, x_ρᵀv⟩."""
        total = self.jacobian.zeros()
        for name, xv in self.xv.items():
            rows = self.jacobian.layers[name]
            total += rows.per_example((self.gu[name] * xv.unsqueeze(1)).sum(2))
        return total

    def adjoint(self, a: Float[Tensor, "N K"]) -> Factors:
        """Return (M_t v_t, M_tᵀ u_t) per layer for M_t = Σ_ik a_ik J_ik,t, without forming M_t."""
        pairs: Factors = {}
        for name, xv in self.xv.items():
            rows = self.jacobian.layers[name]
            weighted = (a[rows.example].unsqueeze(2) * self.gu[name]).sum(1)
            pairs[name] = (rows.pull(a, xv), product(rows.x.T, weighted))
        return pairs

    def differential(self, d: Factors) -> Float[Tensor, "N K"]:
        """Return J(U vᵀ + u Vᵀ), (N,K): Σ_ρ ⟨g_ρkᵀU, x_ρᵀv⟩ + ⟨g_ρkᵀu, x_ρᵀV⟩."""
        total = self.jacobian.zeros()
        for name, xv in self.xv.items():
            rows, (U, V) = self.jacobian.layers[name], d[name]
            terms = rows.times(U) * xv.unsqueeze(1)
            terms.addcmul_(self.gu[name], product(rows.x, V).unsqueeze(1))
            total += rows.per_example(terms.sum(2))
        return total

    def rough(self) -> Point:
        """Return the same over a copy of the rows in float32, where they are many; else itself."""
        if self.jacobian.dtype != torch.float64 or self.jacobian.nbytes < MANY:
            return self
        xv = {name: each.float() for name, each in self.xv.items()}
        gu = {name: each.float() for name, each in self.gu.items()}
        return RoughPoint(FactoredPoint(self.jacobian.single, xv, gu))

    def moved_by_u(self, name: str) -> Float[Tensor, "N K m r"]:
        """Return J_ik v of one layer: a change U of u moves the outputs by ⟨J_ik v, U⟩."""
        return self.jacobian.layers[name].pull_each(self.xv[name])

    def moved_by_v(self, name: str) -> Float[Tensor, "N K n r"]:
        """Return J_ikᵀ u of one layer: a change V of v moves the outputs by ⟨J_ikᵀ u, V⟩."""
        rows, gu = self.jacobian.layers[name], self.gu[name]
        moved = rows.summed(gu.flatten(1), rows.x)
        return moved.reshape(len(rows.counts), *gu.shape[1:], rows.shape[1]).mT

    def curvature(self, d: Factors, weigh: Weigh) -> Factors:
        """Return the adjoint of weigh(differential(d))."""
        examples = torch.arange(self.jacobian.n_examples, device=self.jacobian.device)
        return self.adjoint(weigh(self.differential(d), examples))


@dataclass(frozen=True, eq=False)
class Jacobian(Operator):
    """The Jacobian with all its rows in memory.

    `layers` is keyed like `Blocks`. All layers have the same N and K.
    Source: Jang, Lee, Ryu 2024, section 2; the row form is derived in docs/theory.md.
    """

    layers: Mapping[str, Rows]

    @property
    def n_examples(self) -> int:
        return len(next(iter(self.layers.values())).counts)

    @property
    def n_outputs(self) -> int:
        return next(iter(self.layers.values())).n_outputs

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape (m, n) of each layer's matrix."""
        return {name: rows.shape for name, rows in self.layers.items()}

    @property
    def nbytes(self) -> int:
        """Bytes held; the dense Jacobian would hold N·K·Σ m·n numbers."""
        return sum(rows.nbytes for rows in self.layers.values())

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.layers.values())).x.dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.layers.values())).x.device

    @cached_property
    def single(self) -> Jacobian:
        """The same in float32, kept beside."""
        return self.to(torch.float32)

    @cached_property
    def extents(self) -> dict[str, Extent]:
        """How large the rows of each layer are."""
        return {
            name: Extent(len(rows.x), int(rows.counts.max()), rows.per_example(rows.sizes))
            for name, rows in self.layers.items()
        }

    @cached_property
    def largest(self) -> tuple[float, float]:
        """The largest |entry| of all x and of all g; not finite where one of them is not."""
        x, g = zip(*(rows.largest for rows in self.layers.values()), strict=True)
        return largest_of(x), largest_of(g)

    def forward(self, delta: Blocks) -> Float[Tensor, "N K"]:
        """Return Jδ, (N,K), for dense per-layer updates; a layer that `delta` lacks counts as zero."""
        total = self.zeros()
        for name, update in delta.items():
            rows = self.layers[name]
            total += rows.per_example(rows.inner(update))
        return total

    def adjoint(self, a: Float[Tensor, "N K"], names: Sequence[str] | None = None) -> Blocks:
        """Return M_t = Σ_ik a_ik J_ik,t, (m,n), for every layer, or for those named."""
        wanted = self.layers if names is None else names
        return {name: self.layers[name].pull(a, self.layers[name].x) for name in wanted}

    def adjoint_products(self, a: Float[Tensor, "N K"]) -> dict[str, Products]:
        """Return the products with each M_t = Σ_ρ ĝ_ρ x_ρᵀ and M_tᵀ, by way of the rows."""
        return {name: rows.products(a) for name, rows in self.layers.items()}

    def at(self, factors: Factors) -> FactoredPoint:
        """Return the products with (u, v) from which both J(uvᵀ) and (Mv, Mᵀu) are cheap.

        A layer that `factors` lacks counts as rank zero, and the adjoint has no entry for it.
        """
        return FactoredPoint(
            self,
            {name: product(self.layers[name].x, v) for name, (_, v) in factors.items()},
            {name: self.layers[name].times(u) for name, (u, _) in factors.items()},
        )

    def within(self, bases: Factors) -> Jacobian:
        """Return the Jacobian in the coordinates AᵀδB of a few columns (A_t, B_t): rows (g_ρkᵀA, x_ρᵀB).

        Layers that `bases` lacks are left out.
        """
        point = self.at(bases)
        return Jacobian({t: LayerRows(xv, point.gu[t], self.layers[t].counts) for t, xv in point.xv.items()})

    def along(self, factors: Factors, d: Factors) -> tuple[FactoredPoint, Float[Tensor, "N K"]]:
        """Return the operator at (u, v) and its differential J(U vᵀ + u Vᵀ) along d = (U, V), (N,K).

        Both come from one product of the rows with [v, V] and one with [u, U].
        """
        both = {name: _beside(pair, d[name]) for name, pair in factors.items()}
        wide = self.at(both)
        ranks = {name: u.shape[1] for name, (u, _) in factors.items()}
        xv = {name: wide.xv[name][:, :r] for name, r in ranks.items()}
        gu = {name: wide.gu[name][..., :r] for name, r in ranks.items()}
        crossed = {name: wide.gu[name].roll(-r, 2) for name, r in ranks.items()}  # [gᵀU, gᵀu]
        return FactoredPoint(self, xv, gu), replace(wide, gu=crossed).forward()

    def gram(self, weights: Mapping[str, float] | None = None) -> Float[Tensor, "NK NK"]:
        """Return Θ = Σ_t w_t² J_t J_tᵀ, (NK,NK), row i·K + k: the tangent kernel, where all w_t = 1."""
        size = self.n_examples * self.n_outputs
        return cross_gram(self, self, weights).reshape(size, size)

    def dense(self) -> dict[str, Float[Tensor, "N K m n"]]:
        """Return every block J_ik,t, (N,K,m,n) per layer; for tests and small problems only."""
        blocks = {}
        for name, rows in self.layers.items():
            outer = torch.einsum("rkm,rn->rkmn", rows.g, rows.x)
            shape = (self.n_examples, *outer.shape[1:])
            blocks[name] = outer.new_zeros(shape).index_add_(0, rows.example, outer)
        return blocks

    def combine_outputs(self, C: Float[Tensor, "J K"]) -> Jacobian:
        """Return the Jacobian of the outputs z ↦ C z, such as the contrasts of a softmax."""
        C = C.to(self.device, self.dtype)
        return self._map(lambda rows: in_bands(rows).combined(C))

    def loaded(self) -> Jacobian:
        """Return it as it is: its rows are in memory."""
        return self

    def select(self, index: Sequence[int] | Int[Tensor, " S"]) -> Jacobian:
        """Return the Jacobian of the examples `index`, in that order."""
        chosen = torch.as_tensor(index, dtype=torch.long, device=self.device)
        return self._map(lambda rows: rows.select(chosen))

    def only(self, names: Sequence[str]) -> Jacobian:
        """Return the Jacobian with respect to some of the layers."""
        return Jacobian({name: self.layers[name] for name in names})

    def _converted(self, dtype: torch.dtype, where: torch.device) -> Jacobian:
        return self._map(lambda rows: in_bands(rows).converted(dtype, where))

    def _map(self, change: Callable[[Rows], Rows]) -> Jacobian:
        return Jacobian({name: change(rows) for name, rows in self.layers.items()})


def in_memory(operator: Operator, what: str) -> Jacobian:
    """Return the Jacobian whose rows `what` needs one by one; raise InputError where they lie elsewhere."""
    loaded = operator.loaded()
    if loaded is None:
        raise InputError(
            f"got a Jacobian that lies in a store or is shared among processes for {what}, expected one in "
            "memory: use one process, raise --memory, or take fewer examples or layers"
        )
    return loaded


def divided(jacobian: Jacobian, sizes: Float[Tensor, " N"]) -> Jacobian:
    """Return the Jacobian with the rows of example i over sizes_i, shared out so that each x has the size 1.

    No product of two of its numbers leaves float64 where the quotients are near 1.
    """
    layers = {}
    for name, rows in jacobian.layers.items():
        largest = rows.x.abs().amax(1) if len(rows.x) else rows.x.new_zeros(0)
        reach = torch.where(largest > 0, largest, 1.0)
        g = rows.g * reach[:, None, None] / sizes[rows.example][:, None, None]
        layers[name] = LayerRows(rows.x / reach.unsqueeze(1), g, rows.counts)
    return Jacobian(layers)


def concatenate(parts: Sequence[Jacobian]) -> Jacobian:
    """Return the Jacobian of all the parts' examples, one part after the other."""
    return Jacobian({name: _stacked([part.layers[name] for part in parts]) for name in parts[0].layers})


def _stacked(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts; in bands where all of them have the same."""
    x, counts = torch.cat([part.x for part in parts]), torch.cat([part.counts for part in parts])
    banded = [part.bands for part in parts if isinstance(part, BandedRows)]
    alike = {(band.shape[0], *band.shape[2:]) for band in banded}
    if len(banded) == len(parts) and len(alike) == 1:
        return BandedRows(x, torch.cat(banded, 1), counts)
    return LayerRows(x, torch.cat([part.g for part in parts]), counts)


def _beside(
    one: tuple[Float[Tensor, "m r"], Float[Tensor, "n r"]],
    other: tuple[Float[Tensor, "m s"], Float[Tensor, "n s"]],
) -> tuple[Float[Tensor, "m t"], Float[Tensor, "n t"]]:
    """Return the columns of one pair of factors and then those of the other."""
    return torch.cat([one[0], other[0]], 1), torch.cat([one[1], other[1]], 1)
