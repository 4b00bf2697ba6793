"""The Jacobian as an operator: what solvers and theory may ask of it, wherever its numbers lie.

All representations give the same products: `Jacobian` holds all rows in memory, `StoredJacobian` reads them
from a store block by block, `ShardedJacobian` has its part of them while other processes have the rest, and
`CentredJacobian` has those of the contrasts of its outputs.
Changing the representation changes the cost and never the meaning. Derived; docs/theory.md, "Rows".
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.blocks import Blocks, Factors

if TYPE_CHECKING:
    from tangentlora.tangent.jacobian import Jacobian

Weigh: TypeAlias = Callable[[Float[Tensor, "B K"], Int[Tensor, " B"]], Float[Tensor, "B K"]]
"""A map of the outputs of some examples, example by example; it is also told which examples they are."""

Product: TypeAlias = Callable[[Tensor], Tensor]
Products: TypeAlias = tuple[Product, Product]
"""V (n,b) ↦ M V and U (m,b) ↦ Mᵀ U for one matrix M (m,n)."""


@dataclass(frozen=True, eq=False)
class Extent:
    """How large one layer's rows are: what bounds on rounding are made of.

    `rows` is the number R of rows of all examples, `longest` the most that one example has, and `sizes` the
    sums Σ_{ρ∈i} ‖g_ρk‖‖x_ρ‖ ≥ ‖J_ik,t‖_*.
    """

    rows: int
    longest: int
    sizes: Float[Tensor, "N K"]


def largest_of(values: Iterable[float]) -> float:
    """Return the largest of some numbers, NaN where one is none; 0 where there are none."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else max(found, default=0.0)


class Point(abc.ABC):
    """The operator at factors (u, v): what J(uvᵀ), its derivative and its adjoint share, computed once."""

    @abc.abstractmethod
    def forward(self) -> Float[Tensor, "N K"]:
        """Return J(uvᵀ), (N,K)."""

    @abc.abstractmethod
    def adjoint(self, a: Float[Tensor, "N K"]) -> Factors:
        """Return (M_t v_t, M_tᵀ u_t) per layer for M_t = Σ_ik a_ik J_ik,t, without forming M_t."""

    @abc.abstractmethod
    def differential(self, d: Factors) -> Float[Tensor, "N K"]:
        """Return J(U vᵀ + u Vᵀ), (N,K), for a direction d = (U, V) with entries for every layer."""

    @abc.abstractmethod
    def curvature(self, d: Factors, weigh: Weigh) -> Factors:
        """Return the adjoint of weigh(differential(d)): a Gauss-Newton product, in one pass over the rows."""

    def rough(self) -> Point:
        """Return the same whose products may be rounded to float32, where that is less work.

        What goes in and comes out stays in float64. It is for steps that are checked afterwards, as those of
        conjugate gradients inside a Newton step are, never for a value, a gradient or a certificate.
        """
        return self


AnyOperator = TypeVar("AnyOperator", bound="Operator")


class Operator(abc.ABC):
    """The linear map δ ↦ (Σ_t ⟨J_ik,t, δ_t⟩)_ik from per-layer updates to outputs (N,K), and its adjoint.

    Layers are keyed like `Blocks`. Source: Jang, Lee, Ryu 2024, section 2.
    """

    @property
    @abc.abstractmethod
    def n_examples(self) -> int: ...

    @property
    @abc.abstractmethod
    def n_outputs(self) -> int: ...

    @property
    @abc.abstractmethod
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape (m, n) of each layer's matrix."""

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes of all rows in this precision; the dense Jacobian would hold N·K·Σ m·n numbers."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype: ...

    @property
    @abc.abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abc.abstractmethod
    def extents(self) -> dict[str, Extent]:
        """How large the rows of each layer are; computed once."""

    @property
    @abc.abstractmethod
    def largest(self) -> tuple[float, float]:
        """Bounds on the largest |entry| of all x and of all g; not finite where one of them is not."""

    def is_finite(self) -> bool:
        """Return whether every number is finite."""
        return all(math.isfinite(bound) for bound in self.largest)

    @abc.abstractmethod
    def forward(self, delta: Blocks) -> Float[Tensor, "N K"]:
        """Return Jδ, (N,K), for dense per-layer updates; a layer that `delta` lacks counts as zero."""

    @abc.abstractmethod
    def adjoint(self, a: Float[Tensor, "N K"], names: Sequence[str] | None = None) -> Blocks:
        """Return M_t = Σ_ik a_ik J_ik,t, (m,n), for every layer, or for those named."""

    @abc.abstractmethod
    def adjoint_products(self, a: Float[Tensor, "N K"]) -> dict[str, Products]:
        """Return the products with each M_t and M_tᵀ; M_t itself is formed only where that is cheaper."""

    @abc.abstractmethod
    def at(self, factors: Factors) -> Point:
        """Return the operator at (u, v). A layer that `factors` lacks counts as rank zero."""

    @abc.abstractmethod
    def gram(self, weights: Mapping[str, float] | None = None) -> Float[Tensor, "NK NK"]:
        """Return Θ = Σ_t w_t² J_t J_tᵀ, (NK,NK), row i·K + k: the tangent kernel, where all w_t = 1."""

    def loaded(self) -> Jacobian | None:
        """Return it with all its rows in memory, None where they lie elsewhere."""
        return None

    @abc.abstractmethod
    def select(self, index: Sequence[int] | Int[Tensor, " S"]) -> Jacobian:
        """Return the rows of few examples, in that order, in memory."""

    @abc.abstractmethod
    def within(self, bases: Factors) -> Jacobian:
        """Return the Jacobian in the coordinates AᵀδB of a few columns (A_t, B_t): rows (g_ρkᵀA, x_ρᵀB).

        Its rows are in memory, of every process. Layers that `bases` lacks are left out.
        """

    @abc.abstractmethod
    def combine_outputs(self, C: Float[Tensor, "J K"]) -> Operator:
        """Return the operator of the outputs z ↦ C z, such as the contrasts of a softmax."""

    def to(self: AnyOperator, dtype: torch.dtype, device: torch.device | str | None = None) -> AnyOperator:
        """Return the operator in another precision or on another device; itself where both are its own."""
        where = self.device if device is None else torch.device(device)
        return self if (dtype, where) == (self.dtype, self.device) else self._converted(dtype, where)

    @abc.abstractmethod
    def _converted(self: AnyOperator, dtype: torch.dtype, where: torch.device) -> AnyOperator: ...

    def zeros(self) -> Float[Tensor, "N K"]:
        """Return outputs of zero, (N,K)."""
        return torch.zeros(self.n_examples, self.n_outputs, dtype=self.dtype, device=self.device)
