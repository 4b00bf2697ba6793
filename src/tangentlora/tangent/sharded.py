"""The Jacobian of all examples where each process has the rows of its own: outputs gathered, adjoints summed.

All processes call every method together, with the same arguments, and get the same bytes. The checksum of the
arguments travels with each result, so that processes which have drifted apart end with an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora import processes
from tangentlora.blocks import Blocks, Factors
from tangentlora.errors import InputError
from tangentlora.tangent.gram import cross_gram
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.operator import Extent, Operator, Point, Products, Weigh, largest_of

_BLOCK = 64  # outputs of the examples whose rows go round at a time for a Gram matrix


@final
@dataclass(frozen=True, eq=False)
class ShardedJacobian(Operator):
    """J with the rows of the examples `index`, in this order, in this process: `local` is their Jacobian.

    Jδ = gather_p(J_p δ), (N,K), and Jᵀa = Σ_p J_pᵀ a_p, one exchange for each.
    Raises InputError unless every example 0..N−1 is in exactly one process, and `processes.GroupError` from
    every method where a process is gone or was called with other arguments.
    """

    local: Operator
    index: Int[Tensor, " n"]
    size: int

    def __post_init__(self) -> None:
        whole = len(self.index) == self.local.n_examples and bool(
            ((self.index >= 0) & (self.index < self.size)).all()
        )
        held = torch.bincount(self.index.cpu(), minlength=self.size) if whole else torch.zeros(self.size)
        alike = f"{self.shapes} {self.n_outputs} {self.dtype} {self.size}"
        (held,) = processes.sum_over([held], "sharing out", [alike])
        if not bool((held == 1).all()):
            raise InputError(
                f"got {int((held != 1).sum())} of {self.size} examples in no process or in several, expected "
                "each in one: share them out by their numbers"
            )

    @property
    def n_examples(self) -> int:
        return self.size

    @property
    def n_outputs(self) -> int:
        return self.local.n_outputs

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape (m, n) of each layer's matrix."""
        return self.local.shapes

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the rows of all processes, which exchange them when they are first asked for."""
        return int(processes.sum_over([torch.tensor([self.local.nbytes])], "bytes")[0])

    @property
    def dtype(self) -> torch.dtype:
        return self.local.dtype

    @property
    def device(self) -> torch.device:
        return self.local.device

    @cached_property
    def extents(self) -> dict[str, Extent]:
        """How large the rows of each layer are; the processes exchange it when it is first asked for."""
        names = list(self.shapes)
        empty = Extent(0, 0, torch.zeros(0, self.n_outputs, dtype=self.dtype, device=self.device))
        own = self.local.extents if len(self.index) else dict.fromkeys(names, empty)
        longest = torch.zeros(processes.count(), len(names), dtype=torch.long)
        longest[processes.rank()] = torch.tensor([own[name].longest for name in names])
        sizes = torch.zeros(self.size, len(names), self.n_outputs, dtype=self.dtype, device=self.device)
        sizes[self.index] = torch.stack([own[name].sizes for name in names], 1)
        rows = torch.tensor([own[name].rows for name in names])
        rows, longest, sizes = processes.sum_over([rows, longest, sizes], "extents")
        return {
            name: Extent(int(rows[t]), int(longest[:, t].max()), sizes[:, t]) for t, name in enumerate(names)
        }

    @cached_property
    def largest(self) -> tuple[float, float]:
        """Bounds on the largest |entry| of all x and g of every process; exchanged when first asked for."""
        bounds = torch.zeros(processes.count(), 2, dtype=torch.float64)
        bounds[processes.rank()] = torch.tensor(self.local.largest if len(self.index) else (0.0, 0.0))
        (bounds,) = processes.sum_over([bounds], "largest")
        x, g = (largest_of(part.tolist()) for part in bounds.T)
        return x, g

    def forward(self, delta: Blocks) -> Float[Tensor, "N K"]:
        """Return Jδ, (N,K), for dense per-layer updates; a layer that `delta` lacks counts as zero."""
        agreed = [part for name, block in delta.items() for part in (name, block)]
        return self._gathered(self.local.forward(delta), "forward", agreed)

    def adjoint(self, a: Float[Tensor, "N K"], names: Sequence[str] | None = None) -> Blocks:
        """Return M_t = Σ_ik a_ik J_ik,t, (m,n), for every layer, or for those named."""
        own = self.local.adjoint(a[self.index], names)
        summed = processes.sum_over(list(own.values()), "adjoint", [a, *own])
        return dict(zip(own, summed, strict=True))

    def adjoint_products(self, a: Float[Tensor, "N K"]) -> dict[str, Products]:
        """Return the products with each M_t and M_tᵀ, one exchange for each product."""
        point = str(processes.checksum([a]))

        def shared(own: Callable[[Tensor], Tensor], step: str) -> Callable[[Tensor], Tensor]:
            return lambda V: processes.sum_over([own(V)], step, [point, V])[0]

        return {
            name: (shared(right, f"M V of {name}"), shared(left, f"Mᵀ U of {name}"))
            for name, (right, left) in self.local.adjoint_products(a[self.index]).items()
        }

    def at(self, factors: Factors) -> ShardedPoint:
        """Return the operator at (u, v). A layer that `factors` lacks counts as rank zero."""
        return ShardedPoint(self, self.local.at(factors), _mark(factors))

    def gram(self, weights: Mapping[str, float] | None = None) -> Float[Tensor, "NK NK"]:
        """Return Σ_t w_t² J_t J_tᵀ, (NK,NK): the rows of some examples at a time go to all processes."""
        n, k = self.size, self.n_outputs
        total = torch.zeros(n, k, n, k, dtype=self.dtype, device=self.device)
        own = torch.arange(len(self.index), device=self.device)
        for block in torch.split(torch.arange(n, device=self.device), max(1, _BLOCK // k)):
            there = self.select(block)
            for part in torch.split(own, max(1, _BLOCK // k)):
                products = cross_gram(self.local.select(part), there, weights)
                total[self.index[part][:, None], :, block] = products.transpose(1, 2)
        return processes.sum_over([total], "gram")[0].reshape(n * k, n * k)

    def select(self, index: Sequence[int] | Int[Tensor, " S"]) -> Jacobian:
        """Return the rows of few examples, in that order, in the memory of every process."""
        wanted = torch.as_tensor(index, dtype=torch.long, device=self.device)
        place = torch.full((self.size,), -1, device=self.device)
        place[self.index] = torch.arange(len(self.index), device=self.device)
        here = torch.nonzero(place[wanted] >= 0).flatten()  # the positions in `wanted` of examples held here
        own = self.local.select(place[wanted[here]]).layers
        counts = torch.zeros(len(own), len(wanted), dtype=torch.long, device=self.device)
        for t, rows in enumerate(own.values()):
            counts[t, here] = rows.counts
        (counts,) = processes.sum_over([counts], "rows of each example", [wanted])
        filled = []
        for rows, of_all in zip(own.values(), counts, strict=True):
            mine = torch.zeros(len(wanted), dtype=torch.bool, device=self.device)
            mine[here] = True
            at = torch.repeat_interleave(mine, of_all)
            x, g = (part.new_zeros(len(at), *part.shape[1:]) for part in (rows.x, rows.g))
            x[at], g[at] = rows.x, rows.g
            filled += [x, g]
        filled = processes.sum_over(filled, "rows", [wanted])
        return Jacobian(
            {name: LayerRows(filled[2 * t], filled[2 * t + 1], counts[t]) for t, name in enumerate(own)}
        )

    def within(self, bases: Factors) -> Jacobian:
        """Return the Jacobian in the coordinates AᵀδB of a few columns, in the memory of every process."""
        return replace(self, local=self.local.within(bases)).select(range(self.size))

    def combine_outputs(self, C: Float[Tensor, "J K"]) -> ShardedJacobian:
        """Return the operator of the outputs z ↦ C z, such as the contrasts of a softmax."""
        return ShardedJacobian(self.local.combine_outputs(C), self.index, self.size)

    def _converted(self, dtype: torch.dtype, where: torch.device) -> ShardedJacobian:
        there = self.local.to(dtype, where)
        return replace(self, local=there, index=self.index.to(there.device))

    def _gathered(
        self, own: Float[Tensor, "n K"], step: str, agreed: Sequence[Tensor | str]
    ) -> Float[Tensor, "N K"]:
        return processes.gather_rows(own, self.index, self.size, step, agreed)


@final
@dataclass(frozen=True, eq=False)
class ShardedPoint(Point):
    """What this process has at the factors, and their checksum."""

    jacobian: ShardedJacobian
    local: Point
    mark: str

    def forward(self) -> Float[Tensor, "N K"]:
        """Return J(uvᵀ), (N,K)."""
        return self.jacobian._gathered(self.local.forward(), "J(uvᵀ)", [self.mark])

    def adjoint(self, a: Float[Tensor, "N K"]) -> Factors:
        """Return (M_t v_t, M_tᵀ u_t) per layer, from one exchange."""
        return _summed(self.local.adjoint(a[self.jacobian.index]), "(Mv, Mᵀu)", [self.mark, a])

    def differential(self, d: Factors) -> Float[Tensor, "N K"]:
        """Return J(U vᵀ + u Vᵀ), (N,K), for a direction d = (U, V)."""
        return self.jacobian._gathered(self.local.differential(d), "J(Uvᵀ + uVᵀ)", [self.mark, _mark(d)])

    def curvature(self, d: Factors, weigh: Weigh) -> Factors:
        """Return the adjoint of weigh(differential(d)), from one exchange."""
        index = self.jacobian.index
        own = self.local.curvature(d, lambda z, examples: weigh(z, index[examples]))
        return _summed(own, "curvature", [self.mark, _mark(d)])

    def rough(self) -> ShardedPoint:
        """Return the point whose products may be rounded to float32 in every process."""
        return replace(self, local=self.local.rough())


def _mark(factors: Factors) -> str:
    parts = (part for name, (u, v) in factors.items() for part in (name, u, v))
    return str(processes.checksum(parts))


def _summed(own: Factors, step: str, agreed: Sequence[Tensor | str]) -> Factors:
    flat = [w for pair in own.values() for w in pair]
    summed = iter(processes.sum_over(flat, step, [*own, *agreed]))
    return {name: (next(summed), next(summed)) for name in own}
