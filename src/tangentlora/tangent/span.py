"""Restriction to the span: the coordinates in which every minimiser lives, often far smaller than m×n."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.tangent.band_products import in_bands
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import product
from tangentlora.tangent.operator import Operator
from tangentlora.tangent.rows import orthonormal


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


def restrict(jacobian: Operator) -> tuple[Operator, Span]:
    """Return the Jacobian in span coordinates, AᵀJB, and the span that lifts answers back.

    A side is restricted where its vectors are fewer than its dimension. The basis comes from a QR
    factorisation of all of them, so no rank has to be guessed and nothing is lost but rounding. Rows in bands
    stay so: their columns' span is the direct sum of the bands'. Rows that are not in memory are many: they
    span everything, and stay as they are.
    """
    if not isinstance(jacobian, Jacobian):
        return jacobian, whole(jacobian)
    layers = {name: in_bands(rows) for name, rows in jacobian.layers.items()}
    columns = {name: rows.column_basis() for name, rows in layers.items()}
    rows_of = {name: orthonormal(rows.x) for name, rows in layers.items()}
    reduced = {name: rows.project(rows_of[name], columns[name]) for name, rows in layers.items()}
    return Jacobian(reduced), Span(columns, rows_of)


def whole(jacobian: Operator) -> Span:
    """Return the span of the original coordinates, which restricts nothing."""
    return Span(dict.fromkeys(jacobian.shapes), dict.fromkeys(jacobian.shapes))


def widen(jacobian: Operator, span: Span, v: Mapping[str, Float[Tensor, "_n _r"]]) -> tuple[Operator, Span]:
    """Return the restricted Jacobian and its span, with room for the columns of every v_t, (n,r).

    The row basis B_t becomes (B_t, C_t), C_t an orthonormal basis of what v_t adds to it; on C_t the
    Jacobian is 0. Started at (u, v) with u in the span, gradient descent never leaves the wider span, as
    each gradient (M v + λu, Mᵀu + λv) lies in it: training there is training in the original coordinates.
    Derived; see docs/solvers.md, "Descent".
    """
    if not isinstance(jacobian, Jacobian):
        return jacobian, span
    bases, layers = {}, {}
    for name, rows in jacobian.layers.items():
        basis = bases[name] = span.rows[name]
        layers[name] = rows
        if basis is not None:
            q = basis.shape[1]
            # Householder's Q has orthonormal columns whatever v adds, and its first q span those of B
            added = torch.linalg.qr(torch.cat([basis, v[name]], 1)).Q[:, q:]
            bases[name] = torch.cat([basis, added], 1)
            layers[name] = rows.with_inputs(torch.nn.functional.pad(rows.x, (0, added.shape[1])))
    return Jacobian(layers), Span(span.columns, bases)


def _apply(basis: Tensor | None, matrix: Tensor) -> Tensor:
    return matrix if basis is None else product(basis, matrix)


def _apply_transposed(basis: Tensor | None, matrix: Tensor) -> Tensor:
    return matrix if basis is None else product(basis.T, matrix)
