"""Trust-region Newton-CG on the factors (u, v), preconditioned, with a second-order correction.

The region is a ball in the norm of the preconditioner P = λI + Bᵀ∇²L̂B, so it does not depend on the scales of
the Jacobian or of λ. Where the data are nearly interpolated F is a curved valley, because u vᵀ is bilinear: a
step (U, V) that leaves it through J(UVᵀ) is brought back by −P⁻¹Bᵀ∇²L̂ J(UVᵀ).
Derived; docs/theory.md, "Newton's method".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.solvers.local_model import LocalModel

_ROUNDING = 16 * torch.finfo(torch.float64).eps  # what F cannot resolve, relative to max(1, F)


@dataclass(frozen=True, eq=False)
class NewtonResult:
    """Factors after trust-region steps, with ‖∇F‖ there and the number of Hessian products spent."""

    factors: Factors
    gradient_norm: float
    products: int


def newton(
    problem: Problem,
    factors: Factors,
    *,
    tolerance: float,
    max_steps: int = 60,
    max_products: int = 4000,
    between: Callable[[LocalModel, Factors], Factors] | None = None,
    enough: Callable[[LocalModel], bool] | None = None,
) -> NewtonResult:
    """Minimise F from `factors` until ‖∇F‖ ≤ tolerance, by steps that a trust region keeps descending.

    Ends early where the model promises less than rounding can show, or where after a step `enough` says so.
    F never rises by more than rounding, and layers of rank zero stay so. `between` is asked after every step
    with the model where it began and the factors where it ended, and returns those to go on from.
    """
    model = LocalModel(problem, factors, lowered=True)
    if not model.factors:
        return NewtonResult(factors, 0.0, 0)
    radius = max(float(model.gradient @ model.precondition(model.gradient)), 0.0) ** 0.5  # the size of −P⁻¹∇F
    products, step = 0, None
    for _ in range(max_steps):
        norm = float(model.gradient.norm())
        if norm <= tolerance or products >= max_products or not model.factors:
            break
        if step is None:
            if products and enough is not None and enough(model):
                break
            step = _steihaug(model, radius)
            products += step.products
        trial = _corrected(model, step)
        gained = model.value - trial.value
        unseen = _ROUNDING * max(1.0, abs(model.value))
        if step.promised <= unseen:
            # below what F can resolve the gradient still can: accept a step that shrinks it, or stop
            if not (trial.value <= model.value + unseen and float(trial.gradient.norm()) < 0.5 * norm):
                break
            model, step = trial, None
            continue
        ratio = gained / step.promised
        if not ratio >= 0.25:
            radius = 0.25 * step.size
        elif ratio > 0.75 and step.size > 0.8 * radius:
            radius = 2 * radius
        if not ratio > 1e-4:
            step = step.shortened(model.gradient)
            continue
        step, factors = None, factors | trial.factors
        if between is not None:
            factors = between(model, factors)
            trial = LocalModel(problem, factors, lowered=True)
        model = trial
    return NewtonResult(factors | model.factors, float(model.gradient.norm()), products)


@dataclass(frozen=True, eq=False)
class _Step:
    """A step p, its P-norm, the decrease −(gᵀp + ½pᵀHp) that it promises, and the products it took."""

    p: Float[Tensor, " d"]
    Hp: Float[Tensor, " d"]
    size: float
    promised: float
    products: int

    def shortened(self, g: Float[Tensor, " d"]) -> _Step:
        """Return a quarter of the step, which costs no products."""
        return _step(g, 0.25 * self.p, 0.25 * self.Hp, 0.25 * self.size, 0)


def _step(
    g: Float[Tensor, " d"], p: Float[Tensor, " d"], Hp: Float[Tensor, " d"], size: float, products: int
) -> _Step:
    return _Step(p, Hp, size, -float(g @ p + 0.5 * (p @ Hp)), products)


def _steihaug(model: LocalModel, radius: float) -> _Step:
    """Return a step with ‖p‖_P ≤ radius from preconditioned conjugate gradients on ∇²F p = −∇F.

    They stop at the border of the region, along a direction of negative curvature, or when the residual has
    shrunk enough for fast convergence.
    """
    g = model.gradient
    p, Hp, residual = torch.zeros_like(g), torch.zeros_like(g), g.clone()
    y = model.precondition(residual)
    d, square = -y, float(residual @ y)  # square: the residual in the dual norm
    enough = min(0.1, max(square, 0.0) ** 0.25) ** 2 * square
    pp, pd, dd = 0.0, 0.0, square  # products in the P-norm, kept by recurrence
    products = 0
    while products < 2 * len(g) and 0 < dd < math.inf:  # rounding can leave P⁻¹ without a sign, at tiny λ
        Hd = model.hessian_product(d)
        products += 1
        curvature = float(d @ Hd)
        alpha = square / curvature if curvature > 0 else math.inf
        if not pp + 2 * alpha * pd + alpha * alpha * dd < radius * radius:
            tau = (-pd + math.sqrt(max(pd * pd + dd * (radius * radius - pp), 0.0))) / dd
            p, Hp, pp = p + tau * d, Hp + tau * Hd, radius * radius
            break
        p, Hp, pp = p + alpha * d, Hp + alpha * Hd, max(pp + 2 * alpha * pd + alpha * alpha * dd, 0.0)
        residual = residual + alpha * Hd
        y = model.precondition(residual)
        fresh = float(residual @ y)
        if not fresh > enough:
            break
        beta = fresh / square
        d, pd, dd = -y + beta * d, beta * (pd + alpha * dd), fresh + beta * beta * dd
        square = fresh
    return _step(g, p, Hp, math.sqrt(pp), products)


def _corrected(model: LocalModel, step: _Step) -> LocalModel:
    """Return the model after the step, or after its second-order correction too where that is lower."""
    trial = model.moved(step.p)
    if model.value - trial.value >= 0.75 * step.promised:
        return trial
    corrected = model.moved(step.p + model.correction(step.p))
    return corrected if corrected.value < trial.value else trial


def sharpness(problem: Problem, factors: Factors, products: int = 30) -> float:
    """Return the largest absolute eigenvalue of ∇²F at the factors, by power iteration: a lower estimate."""
    model = LocalModel(problem, factors)
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(len(model.gradient), generator=generator, dtype=torch.float64).to(model.gradient.device)
    for _ in range(products):
        d = model.hessian_product(d / d.norm())
    return float(d.norm())
