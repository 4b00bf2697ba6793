"""The factored objective to second order at any factors, perturbed or not, without forming the Hessian.

With Q_t = [u_t; v_t], M_t = Σ_ik a_ik J_ik,t and S_t = [[λI, M_t],[M_tᵀ, λI]] + 2Π_t,

    F_Π(Q) = L̂(uvᵀ) + λ/2 Σ_t ‖Q_t‖² + Σ_t ⟨Π_t, Q_tQ_tᵀ⟩,    ∇F_Π = (S_t Q_t)_t,
    ∇²F_Π[D, D] = ∇²L̂[E, E] + Σ_t ⟨S_t, D_tD_tᵀ⟩,    D_t = [U_t; V_t],  E_t = U_tv_tᵀ + u_tV_tᵀ.

Derived; docs/theory.md, "Stationary points".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Blocks, Factors, pack, unpack
from tangentlora.problem.objective import Problem, half_squares
from tangentlora.tangent.jacobian import FactoredPoint

_DESIGN_LIMIT = 2**24
"""Entries of B, and of the rows it is summed from, up to which products use it: 128 MB."""

_NO_TURN = 1e-14  # of ‖Q‖²: columns smaller than this have no direction to be turned in


@dataclass(frozen=True, eq=False)
class Hessian:
    """∇²F_Π at the factors (u,v), with the value and the gradient of F_Π there.

    `noise` holds Π_t ⪰ 0, (m+n,m+n), per layer; a layer that it lacks has Π_t = 0. A layer that the factors
    lack, or hold at rank zero, is not varied. Directions are factors, or vectors as `pack` makes them.
    """

    problem: Problem
    factors: Factors
    noise: Mapping[str, Float[Tensor, "_s _s"]] = field(default_factory=dict)

    @cached_property
    def _point(self) -> FactoredPoint:
        return self.problem.rows.at(self.factors)

    @cached_property
    def z(self) -> Float[Tensor, "N K"]:
        """The outputs z = f0 + J(uvᵀ)."""
        return self.problem.f0 + self._point.forward()

    @cached_property
    def value(self) -> float:
        """F_Π(u,v)."""
        noise = sum(
            float((q * (self.noise[t] @ q)).sum()) for t, q in self._stacked.items() if t in self.noise
        )
        return self.problem.empirical_loss(self.z) + self.problem.lam * half_squares(self.factors) + noise

    @cached_property
    def loss_gradient(self) -> Blocks:
        """M_t = ∇L̂ with respect to δ_t, (m,n), for the layers of the factors."""
        return self.problem.rows.adjoint(self.problem.dual_point(self.z), list(self.factors))

    @cached_property
    def gradient(self) -> Float[Tensor, " d"]:
        """∇F_Π = (S_t Q_t)_t as one vector."""
        return self.pack(self._slack_product(self.factors))

    def product(self, d: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Return ∇²F_Π d = Bᵀ∇²L̂ (B d) and S_t D_t."""
        direction = self.unpack(d)
        if self._design_fits:
            moved = (self._design.flatten(0, 1) @ d).reshape(self.z.shape)
        else:
            moved = self._point.differential(direction)
        bent = self.problem.loss.hessian_product(self.z, self.problem.y, moved) / len(moved)
        if self._design_fits:
            pulled: Tensor = bent.flatten() @ self._design.flatten(0, 1)
        else:
            pulled = self.pack(self._point.adjoint(bent))
        return pulled + self.pack(self._slack_product(direction))

    @cached_property
    def _design_fits(self) -> bool:
        """Whether B is small enough to be kept: then a product costs two thin ones with it."""
        return self.z.numel() * len(self.pack(self.factors)) <= _DESIGN_LIMIT

    @cached_property
    def _design(self) -> Float[Tensor, "N K d"]:
        """The rows B_ik = (vec(J_ik v), vec(J_ikᵀ u)): along d the outputs move by B d."""
        sides = [self.z.new_zeros(*self.z.shape, 0)]
        for name in self.factors:
            moved = self._point.moved_by_u(name), self._point.moved_by_v(name)
            sides += [side.flatten(2) for side in moved]
        return torch.cat(sides, 2)

    def dense(self) -> Float[Tensor, "d d"]:
        """Return ∇²F_Π = Bᵀ∇²L̂B + diag_t(S_t ⊗ I_r) as a matrix: for few parameters only."""
        loss, y = self.problem.loss, self.problem.y
        units = torch.eye(self.z.shape[1]).to(self.z)
        columns = [loss.hessian_product(self.z, y, unit.expand_as(self.z)) for unit in units]
        bent = torch.einsum("nkj,njd->nkd", torch.stack(columns, 2) / len(self.z), self._design)
        matrix = self._design.flatten(0, 1).T @ bent.flatten(0, 1)
        end = 0
        for name, (u, _) in self.factors.items():
            block = torch.kron(self.slack(name), torch.eye(u.shape[1]).to(self.z))
            start, end = end, end + len(block)
            matrix[start:end, start:end] += block
        return 0.5 * (matrix + matrix.T)

    def slack(self, name: str) -> Float[Tensor, "_s _s"]:
        """Return S_t = [[λI, M_t],[M_tᵀ, λI]] + 2Π_t, (m+n,m+n)."""
        M = self.loss_gradient[name]
        m, n = M.shape
        S = self.problem.lam * torch.eye(m + n).to(M)
        S[:m, m:], S[m:, :m] = M, M.T
        return S + 2 * self.noise[name] if name in self.noise else S

    def slack_norm(self, name: str) -> float:
        """Return λ + ‖M_t‖₂ + 2‖Π_t‖₂ ≥ ‖S_t‖₂."""
        parts = [self.loss_gradient[name], *([2 * self.noise[name]] if name in self.noise else [])]
        return self.problem.lam + sum(float(torch.linalg.svdvals(part)[:1].sum()) for part in parts)

    def without_rotations(self, d: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Return d without its part along Q_tΩ_t, Ω_tᵀ = −Ω_t: F_Π does not change as Q_t turns to Q_tR.

        With QᵀQ = Z diag(σ²) Zᵀ that part is QZ Ω' Zᵀ, Ω'_ij = (G_ij − G_ji)/(σ_i² + σ_j²), G = (QZ)ᵀDZ.
        """
        rest: Factors = {}
        for name, (U, V) in self.unpack(d).items():
            Z, turned, size = self._turns[name]
            G = turned.T @ torch.cat([U, V]) @ Z
            omega = torch.where(size > 0, (G - G.T) / size.clamp(min=torch.finfo(G.dtype).tiny), 0.0)
            part = turned @ omega @ Z.T
            rest[name] = (U - part[: len(U)], V - part[len(U) :])
        return self.pack(rest)

    @cached_property
    def rotations(self) -> Float[Tensor, "d j"]:
        """An orthonormal basis of the directions QΩ: q_i z_jᵀ − q_j z_iᵀ, i < j, q_i = Qz_i, per layer."""
        parts, end = [], 0
        for Z, turned, size in self._turns.values():
            i, j = torch.triu(size, 1).nonzero(as_tuple=True)
            pairs = torch.einsum("sp,rp->srp", turned[:, i], Z[:, j])
            pairs = pairs - torch.einsum("sp,rp->srp", turned[:, j], Z[:, i])
            columns = pairs.flatten(0, 1) / size[i, j].sqrt()
            start, end = end, end + len(columns)
            part = columns.new_zeros(len(self.gradient), columns.shape[1])
            part[start:end] = columns
            parts.append(part)
        return torch.cat(parts, 1)

    @cached_property
    def _turns(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Z, QZ and σ_i² + σ_j² per layer, 0 where both columns count as zero."""
        result = {}
        for name, q in self._stacked.items():
            squares, Z = torch.linalg.eigh(q.T @ q)
            size = squares.clamp(min=0)[:, None] + squares.clamp(min=0)[None, :]
            result[name] = (
                Z,
                q @ Z,
                torch.where(size > _NO_TURN * size.max(), size, 0.0) if len(Z) else size,
            )
        return result

    @cached_property
    def _stacked(self) -> dict[str, Tensor]:
        return {name: torch.cat(pair) for name, pair in self.factors.items()}

    def _slack_product(self, direction: Factors) -> Factors:
        lam, result = self.problem.lam, {}
        for name, (U, V) in direction.items():
            if name in self.noise:  # Π_t is as large as S_t, so forming S_t costs little
                pulled = self._slacks[name] @ torch.cat([U, V])
                result[name] = (pulled[: len(U)], pulled[len(U) :])
            else:
                M = self.loss_gradient[name]
                result[name] = (M @ V + lam * U, M.T @ U + lam * V)
        return result

    @cached_property
    def _slacks(self) -> Blocks:
        return {name: self.slack(name) for name in self.noise if name in self.factors}

    def moved(self, d: Float[Tensor, " d"]) -> Hessian:
        """Return the same at (u,v) + d."""
        pairs = self.unpack(d)
        factors = {name: (u + pairs[name][0], v + pairs[name][1]) for name, (u, v) in self.factors.items()}
        return Hessian(self.problem, factors, self.noise)

    def pack(self, factors: Factors) -> Float[Tensor, " d"]:
        """Return factors of these shapes as one vector."""
        return pack(factors, self.factors, self.z)

    def unpack(self, vector: Float[Tensor, " d"]) -> Factors:
        """Return the factors that `pack` made into a vector."""
        return unpack(vector, self.factors)
