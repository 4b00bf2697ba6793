"""F(u,v) + Σ_t ⟨Π_t, Q_tQ_tᵀ⟩ and its gradient, from one pass over the Jacobian."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem, half_squares


@dataclass(frozen=True)
class Evaluation:
    """The factored objective, L̂ and the dual point a = ∇_z L̂ alone, and the gradient in (u_t, v_t)."""

    value: float
    loss: float
    a: Float[Tensor, "N K"]
    gradient: Factors

    def gradient_norm(self, u_only: bool = False) -> float:
        """Return ‖∇F‖ over all layers, with respect to u alone where v is frozen."""
        parts = [g for pair in self.gradient.values() for g in pair[: 1 if u_only else 2]]
        return math.sqrt(sum(float(g.square().sum()) for g in parts))


@dataclass(frozen=True, eq=False)
class Stacked:
    """Factors whose numbers lie in two vectors, one for all u_t and one for all v_t: `factors` are views.

    So a step of an optimiser is a step on two tensors, and every factor is stored by columns.
    """

    u: Float[Tensor, " d"]
    v: Float[Tensor, " e"]
    factors: Factors

    def read(self, factors: Factors) -> None:
        """Take over the numbers of factors of the same shapes."""
        for name, pair in factors.items():
            for ours, theirs in zip(self.factors[name], pair, strict=True):
                ours.copy_(theirs)


def stack(factors: Factors) -> Stacked:
    """Return a copy of the factors, stacked."""
    (u, us), (v, vs) = (_stack([pair[part] for pair in factors.values()]) for part in (0, 1))
    return Stacked(u, v, dict(zip(factors, zip(us, vs, strict=True), strict=True)))


def _stack(matrices: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    vector = torch.cat([matrix.T.flatten() for matrix in matrices])
    pieces = torch.split(vector, [matrix.numel() for matrix in matrices])
    return vector, [piece.view(w.T.shape).T for piece, w in zip(pieces, matrices, strict=True)]


@dataclass(frozen=True)
class FactoredObjective:
    """F_Π(u,v) = L̂(uvᵀ) + λ/2 Σ_t (‖u_t‖² + ‖v_t‖²) + Σ_t ⟨Π_t, Q_tQ_tᵀ⟩, Q_t = [u_t; v_t].

    Source: Jang, Lee, Ryu 2024, sections 2 and 4. A layer that `noise` lacks has Π_t = 0.
    """

    problem: Problem
    noise: Mapping[str, Float[Tensor, "_s _s"]]

    def evaluate(self, factors: Factors) -> Evaluation:
        """Return the value and the gradient: ∇_u = M v + λu, ∇_v = Mᵀu + λv, plus 2ΠQ."""
        problem = self.problem
        point = problem.jacobian.at(factors)
        z = problem.f0 + point.forward()
        loss, a = problem.empirical_loss(z), problem.dual_point(z)
        value = loss + problem.lam * half_squares(factors)
        pairs = point.adjoint(a)
        gradient = {
            name: (pairs[name][0].add(u, alpha=problem.lam), pairs[name][1].add(v, alpha=problem.lam))
            for name, (u, v) in factors.items()
        }
        for name, matrix in self.noise.items():
            u, v = factors[name]
            stacked = torch.cat([u, v])
            pulled = matrix @ stacked
            value += float((stacked * pulled).sum())
            gu, gv = gradient[name]
            gradient[name] = (gu + 2 * pulled[: len(u)], gv + 2 * pulled[len(u) :])
        return Evaluation(value, loss, a, gradient)

    def value(self, factors: Factors) -> float:
        """Return the value alone, which takes no adjoint."""
        problem = self.problem
        z = problem.f0 + problem.jacobian.at(factors).forward()
        value = problem.empirical_loss(z) + problem.lam * half_squares(factors)
        for name, matrix in self.noise.items():
            stacked = torch.cat(factors[name])
            value += float((stacked * (matrix @ stacked)).sum())
        return value

    def closure(self, stacked: Stacked, scale: float, count: Counter[str]) -> Callable[[], float]:
        """Return what torch.optim calls: it sets both vectors' `.grad` and returns F, all times `scale`.

        Every call adds the examples it passed over to `count["examples"]`.
        """

        def evaluate() -> float:
            result = self.evaluate(stacked.factors)
            count["examples"] += len(self.problem.f0)
            for part, vector in enumerate((stacked.u, stacked.v)):
                gradient = torch.cat([pair[part].T.flatten() for pair in result.gradient.values()])
                vector.grad = gradient if scale == 1 else scale * gradient
            return scale * result.value

        return evaluate


def perturbation(
    shapes: Mapping[str, tuple[int, int]], size: float, seed: int, like: Tensor
) -> dict[str, Float[Tensor, "_s _s"]]:
    """Return random Π_t ⪰ 0, (m+n,m+n) with ‖Π_t‖₂ = size: Wishart matrices; nothing where size is 0."""
    if size == 0:
        return {}
    generator = torch.Generator().manual_seed(seed + 1)  # not the stream that draws the initial factors
    result = {}
    for name, (m, n) in shapes.items():
        w = torch.randn(m + n, m + n, generator=generator, dtype=torch.float64).to(like.device)
        matrix = w @ w.T
        matrix = 0.5 * (matrix + matrix.T)  # the product is symmetric up to rounding only
        result[name] = size / float(torch.linalg.matrix_norm(matrix, 2)) * matrix
    return result
