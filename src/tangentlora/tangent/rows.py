"""One layer's Jacobian as rows, J_ik = Σ_{ρ∈i} g_ρk x_ρᵀ: what may be asked of them, however g is kept.

`LayerRows` keeps every column of g, `BandedRows` those alone in which a row is not zero. Products differ in
cost and never in meaning. Derived; docs/theory.md, "Rows".
"""

from __future__ import annotations

import abc
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.tangent.operator import Products


class Rows(abc.ABC):
    """Rows sorted by example: `counts[i]` of them belong to example i. `g` has all columns."""

    x: Float[Tensor, "R n"]
    g: Float[Tensor, "R K m"]
    counts: Int[Tensor, " N"]

    @property
    @abc.abstractmethod
    def held(self) -> Tensor:
        """The numbers of g that are kept."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of the weight matrix."""

    @property
    @abc.abstractmethod
    def n_outputs(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.x.nbytes + self.held.nbytes + self.counts.nbytes

    @cached_property
    def example(self) -> Int[Tensor, " R"]:
        """The example that each row belongs to."""
        return torch.repeat_interleave(self.counts)

    @cached_property
    def sizes(self) -> Float[Tensor, "R K"]:
        """The norm ‖g_ρk‖‖x_ρ‖ of each outer product, Frobenius' and spectral alike."""
        return self._norms() * lengths(self.x).unsqueeze(1)

    @cached_property
    def largest(self) -> tuple[float, float]:
        """The largest |entry| of x and of g; not finite where one of them is not."""
        # a NaN is the least and the largest of all, and no mask of the rows' size is made
        x, g = (
            float(torch.stack(torch.aminmax(w)).abs().max()) if w.numel() else 0.0
            for w in (self.x, self.held)
        )
        return x, g

    @abc.abstractmethod
    def _norms(self) -> Float[Tensor, "R K"]: ...

    @abc.abstractmethod
    def times(self, u: Float[Tensor, "m r"]) -> Float[Tensor, "R K r"]:
        """Return g_ρkᵀ u."""

    @abc.abstractmethod
    def inner(self, delta: Float[Tensor, "m n"]) -> Float[Tensor, "R K"]:
        """Return ⟨g_ρk x_ρᵀ, δ⟩."""

    @abc.abstractmethod
    def pull(self, a: Float[Tensor, "N K"], rows: Float[Tensor, "R p"]) -> Float[Tensor, "m p"]:
        """Return Σ_ρ ĝ_ρ rows_ρᵀ, ĝ_ρ = Σ_k a_ik g_ρk; with the inputs x for rows that is M_t."""

    @abc.abstractmethod
    def pull_each(self, rows: Float[Tensor, "R p"]) -> Float[Tensor, "N K m p"]:
        """Return Σ_{ρ∈i} g_ρk rows_ρᵀ for every example and output."""

    @abc.abstractmethod
    def products(self, a: Float[Tensor, "N K"]) -> Products:
        """Return the products with M_t = Σ_ρ ĝ_ρ x_ρᵀ and M_tᵀ."""

    @abc.abstractmethod
    def combined(self, C: Float[Tensor, "J K"]) -> Rows:
        """Return the rows of the outputs z ↦ C z."""

    @abc.abstractmethod
    def converted(self, dtype: torch.dtype, where: torch.device) -> Rows:
        """Return the rows in a precision and on a device."""

    @abc.abstractmethod
    def with_inputs(self, x: Float[Tensor, "R _n"]) -> Rows:
        """Return rows of the same output-gradients with other inputs."""

    @abc.abstractmethod
    def select(self, index: Int[Tensor, " S"]) -> Rows:
        """Return the rows of the examples `index`, in that order."""

    @abc.abstractmethod
    def run(self, start: int, stop: int) -> Rows:
        """Return the rows of the examples from `start` to before `stop`, as views."""

    @abc.abstractmethod
    def column_basis(self) -> Float[Tensor, "m p"] | None:
        """Return an orthonormal basis of the columns that g spans, None where it is no smaller than m."""

    @abc.abstractmethod
    def project(
        self, row_basis: Float[Tensor, "n q"] | None, column_basis: Float[Tensor, "m p"] | None
    ) -> Rows:
        """Return the rows in coordinates AᵀδB, A = `column_basis`, B = `row_basis`; None is the identity."""

    def per_example(self, rows: Float[Tensor, "R K"]) -> Float[Tensor, "N K"]:
        """Return the sums over the rows of each example."""
        return rows.new_zeros(len(self.counts), rows.shape[1]).index_add_(0, self.example, rows)

    def by_example(self, rows: Float[Tensor, "R ..."]) -> Float[Tensor, "N L ..."]:
        """Return the rows of each example, filled up with zeros to as many as the longest has."""
        n, longest = len(self.counts), int(self.counts.max())
        if n * longest == len(rows):
            return rows.reshape(n, longest, *rows.shape[1:])
        starts = self.counts.cumsum(0) - self.counts
        within = torch.arange(len(rows), device=rows.device) - starts[self.example]
        filled = rows.new_zeros(n, longest, *rows.shape[1:])
        filled[self.example, within] = rows
        return filled

    def summed(self, left: Float[Tensor, "R p"], right: Float[Tensor, "R q"]) -> Float[Tensor, "N p q"]:
        """Return Σ_{ρ∈i} left_ρ right_ρᵀ for every example, by one batched product."""
        return torch.bmm(self.by_example(left).mT, self.by_example(right))


def lengths(vectors: Float[Tensor, "*s d"]) -> Float[Tensor, "*s"]:
    """Return ‖·‖₂ along the last dimension, also where squares leave the range of the numbers."""
    found: Tensor = vectors.norm(dim=-1)
    limits = torch.finfo(vectors.dtype)
    unsafe = (found < limits.tiny**0.5 / limits.eps) | (found > limits.max**0.5 * limits.eps)
    if bool(unsafe.any()) and vectors.shape[-1]:
        odd = vectors[unsafe]
        largest = odd.abs().amax(-1, keepdim=True)
        sizes = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
        found[unsafe] = (odd / sizes).norm(dim=-1) * sizes.squeeze(-1)
    return found


def orthonormal(vectors: Float[Tensor, "R d"]) -> Float[Tensor, "d R"] | None:
    """Return an orthonormal basis of what the vectors span, None where they are no fewer than d.

    It comes from a QR factorisation of all of them, so no rank has to be guessed.
    """
    if vectors.shape[0] >= vectors.shape[1]:
        return None
    basis: Tensor = torch.linalg.qr(vectors.T, mode="reduced").Q
    return basis


def combine(C: Float[Tensor, "J K"], g: Float[Tensor, "... K w"]) -> Float[Tensor, "... J w"]:
    """Return Σ_k C_jk g_k: as a short sum for a single j, where a batch of tiny products is slow."""
    if len(C) > 1:
        return torch.matmul(C, g)
    first, *others = C[0].tolist()
    total: Tensor = first * g[..., :1, :]
    for k, weight in enumerate(others, 1):
        total.add_(g[..., k : k + 1, :], alpha=weight)
    return total
