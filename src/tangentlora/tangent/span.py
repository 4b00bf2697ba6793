"""Restriction to the span: the coordinates in which every minimiser lives, often far smaller than m×n."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.tangent.jacobian import Jacobian


@dataclass(frozen=True, eq=False)
class Span:
    """Orthonormal bases A_t (m,p) and B_t (n,q) that hold the columns and rows of every J_ik,t.

    None stands for the identity. For λ > 0 every minimiser satisfies δ_t = A_tA_tᵀ δ_t B_tB_tᵀ: the
    projection keeps all outputs and cannot raise the nuclear norm.
    Derived; see docs/theory.md, "Restriction to the span".
    """

    columns: dict[str, Float[Tensor, "m p"] | None]
    rows: dict[str, Float[Tensor, "n q"] | None]

    def lift(self, factors: Factors) -> Factors:
        """Return (A u, B v), the factors in the original coordinates."""
        return {
            name: (_apply(self.columns[name], u), _apply(self.rows[name], v))
            for name, (u, v) in factors.items()
        }

    def lower(self, factors: Factors) -> Factors:
        """Return (Aᵀu, Bᵀv), the coordinates of the projected factors."""
        return {
            name: (_apply_transposed(self.columns[name], u), _apply_transposed(self.rows[name], v))
            for name, (u, v) in factors.items()
        }


def restrict(jacobian: Jacobian) -> tuple[Jacobian, Span]:
    """Return the Jacobian in span coordinates, AᵀJB, and the span that lifts answers back.

    A side is restricted where its vectors are fewer than its dimension. The basis comes from a QR
    factorisation of all of them, so no rank has to be guessed and nothing is lost but rounding.
    """
    columns = {name: _basis(rows.g.flatten(0, 1)) for name, rows in jacobian.layers.items()}
    rows_of = {name: _basis(rows.x) for name, rows in jacobian.layers.items()}
    reduced = {name: rows.project(rows_of[name], columns[name]) for name, rows in jacobian.layers.items()}
    return Jacobian(reduced), Span(columns, rows_of)


def _basis(vectors: Float[Tensor, "R d"]) -> Float[Tensor, "d R"] | None:
    if vectors.shape[0] >= vectors.shape[1]:
        return None
    basis: Tensor = torch.linalg.qr(vectors.T, mode="reduced").Q
    return basis


def _apply(basis: Tensor | None, matrix: Tensor) -> Tensor:
    return matrix if basis is None else basis @ matrix


def _apply_transposed(basis: Tensor | None, matrix: Tensor) -> Tensor:
    return matrix if basis is None else basis.T @ matrix
