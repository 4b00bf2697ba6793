"""Trust-region Newton-CG on the factors (u, v) with exact Hessian products, for a problem in span coordinates.

One pass over the Jacobian builds, at the current factors, M_t = Σ a_ik J_ik,t and the design matrices
B_U (rows vec(J_ik v)) and B_V (rows vec(J_ikᵀ u)). Then, for a direction d = (U, V) over all layers,

    ∇²F d = Bᵀ ∇²L̂ (B d) + (M V, Mᵀ U) + λ d

costs two thin products per layer however many Hessian products follow. Derived; docs/theory.md, "Newton's method".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem, half_squares


@dataclass(frozen=True)
class NewtonResult:
    """Factors after trust-region steps, with ‖∇F‖ there and the number of Hessian products spent."""

    factors: Factors
    gradient_norm: float
    products: int


class LocalModel:
    """F at factors (u, v) to second order: value, gradient and Hessian products on stacked vectors."""

    def __init__(self, problem: Problem, factors: Factors) -> None:
        self.problem = problem
        self.names = [name for name, (u, _) in factors.items() if u.shape[1]]
        self.factors = {name: factors[name] for name in self.names}
        point = problem.jacobian.at(self.factors)
        self.z = problem.f0 + point.forward()
        self.value = problem.empirical_loss(self.z) + problem.lam * half_squares(self.factors)
        a = problem.dual_point(self.z)
        self.M = problem.jacobian.only(self.names).adjoint(a) if self.names else {}
        self.design = [self._design(name, part) for name in self.names for part in (0, 1)]
        self.gradient = self.pack(
            {
                name: (self.M[name] @ v + problem.lam * u, self.M[name].T @ u + problem.lam * v)
                for name, (u, v) in self.factors.items()
            }
        )

    def _design(self, name: str, part: int) -> Float[Tensor, "NK d"]:
        """Return B_U (part 0) or B_V (part 1): row (i,k) is vec(J_ik v) or vec(J_ikᵀ u)."""
        rows = self.problem.jacobian.layers[name]
        u, v = self.factors[name]
        if part == 0:
            outer = torch.einsum("rkm,rs->rkms", rows.g, rows.x @ v)
        else:
            outer = torch.einsum("rks,rn->rkns", rows.g @ u, rows.x)
        flat = outer.reshape(len(outer), -1)
        return rows.per_example(flat).reshape(self.z.numel(), -1)

    def pack(self, factors: Factors) -> Float[Tensor, " d"]:
        return torch.cat([w.reshape(-1) for name in self.names for w in factors[name]])

    def unpack(self, vector: Float[Tensor, " d"]) -> Factors:
        pairs, start = {}, 0
        for name in self.names:
            parts = []
            for w in self.factors[name]:
                parts.append(vector[start : start + w.numel()].reshape(w.shape))
                start += w.numel()
            pairs[name] = (parts[0], parts[1])
        return pairs

    def hessian_product(self, d: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Return ∇²F(u,v) d."""
        pieces = torch.split(d, [B.shape[1] for B in self.design])
        dz = sum((B @ piece for B, piece in zip(self.design, pieces, strict=True)), torch.zeros(()).to(d))
        curved = self.problem.loss.hessian_product(self.z, self.problem.y, dz.reshape(self.z.shape))
        curved = curved.reshape(-1) / len(self.z)
        result = torch.cat([B.T @ curved for B in self.design]) + self.problem.lam * d
        cross = {name: (self.M[name] @ V, self.M[name].T @ U) for name, (U, V) in self.unpack(d).items()}
        return result + self.pack(cross)


def newton(
    problem: Problem, factors: Factors, *, tolerance: float, max_steps: int = 60, max_products: int = 4000
) -> NewtonResult:
    """Minimise F from `factors` until ‖∇F‖ ≤ tolerance, by steps that a trust region keeps descending.

    Ends early where the model promises less than rounding can show. F never rises.
    """
    model = LocalModel(problem, factors)
    x = model.pack(model.factors) if model.names else torch.zeros(0).to(problem.f0)
    radius = max(1.0, float(x.norm()))
    products = 0
    floor = 16 * torch.finfo(torch.float64).eps
    for _ in range(max_steps):
        norm = float(model.gradient.norm())
        if norm <= tolerance or products >= max_products:
            break
        step, promised, spent = _steihaug(model, radius, min(0.1, norm**0.5) * norm)
        products += spent
        trial = LocalModel(problem, model.unpack(model.pack(model.factors) + step))
        gained = model.value - trial.value
        rounding = floor * max(1.0, abs(model.value))
        if promised <= rounding:
            # below what F can resolve the gradient still can: accept a step that shrinks it, or stop
            if float(trial.gradient.norm()) < 0.5 * norm:
                model = trial
                continue
            break
        ratio = gained / promised
        if ratio < 0.25:
            radius = 0.25 * float(step.norm())
        elif ratio > 0.75 and float(step.norm()) > 0.8 * radius:
            radius = 2 * radius
        if ratio > 1e-4:
            model = trial
    return NewtonResult(model.factors, float(model.gradient.norm()), products)


def _steihaug(model: LocalModel, radius: float, tolerance: float) -> tuple[Tensor, float, int]:
    """Return a step p with ‖p‖ ≤ radius, the decrease −(gᵀp + ½pᵀHp) it promises, and the products it took.

    Conjugate gradients stop at the border of the region or along a direction of negative curvature.
    """
    g = model.gradient
    p, Hp = torch.zeros_like(g), torch.zeros_like(g)
    residual, d = g.clone(), -g
    square = float(residual @ residual)
    products = 0
    for _ in range(2 * len(g)):
        Hd = model.hessian_product(d)
        products += 1
        curvature = float(d @ Hd)
        alpha = square / curvature if curvature > 0 else float("inf")
        if curvature <= 0 or float((p + alpha * d).norm()) >= radius:
            tau = _to_border(p, d, radius)
            p, Hp = p + tau * d, Hp + tau * Hd
            break
        p, Hp = p + alpha * d, Hp + alpha * Hd
        residual = residual + alpha * Hd
        fresh = float(residual @ residual)
        if fresh**0.5 <= tolerance:
            break
        d = -residual + (fresh / square) * d
        square = fresh
    return p, -float(g @ p + 0.5 * (p @ Hp)), products


def _to_border(p: Tensor, d: Tensor, radius: float) -> float:
    """Return τ ≥ 0 with ‖p + τd‖ = radius."""
    a, b, c = float(d @ d), 2 * float(p @ d), float(p @ p) - radius**2
    return (-b + max(b * b - 4 * a * c, 0.0) ** 0.5) / (2 * a)


def sharpness(problem: Problem, factors: Factors, products: int = 30) -> float:
    """Return the largest eigenvalue of ∇²F at the factors in absolute value, by power iteration (a lower estimate)."""
    model = LocalModel(problem, factors)
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(len(model.gradient), generator=generator, dtype=torch.float64).to(model.gradient.device)
    for _ in range(products):
        d = model.hessian_product(d / d.norm())
    return float(d.norm())
