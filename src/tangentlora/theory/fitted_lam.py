"""The λ that a trained update is most nearly stationary for, and how well any λ explains it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tangentlora.blocks import Blocks, Factors
from tangentlora.problem.spectral import product_svd


@dataclass(frozen=True)
class FittedLam:
    """The least-squares λ̂, None where none is positive, and the share of the forces that it explains.

    `explained` = 1 − R(λ̂)/R(0) in [0, 1], R(λ) = Σ_t ‖M_t v_t + λu_t‖² + ‖M_tᵀu_t + λv_t‖²: 1 at a stationary
    point of L + λ̂ Σ‖δ_t‖_*, near 0 where no λ makes the update one. It is the squared cosine of the angle
    between the pull of the loss and that of the penalty.
    """

    lam: float | None
    explained: float


def fitted_lam(gradients: Blocks, factors: Factors) -> FittedLam:
    """Return λ̂ = −Σ_t ⟨M_t, δ_t⟩ / Σ_t ‖δ_t‖_*, where R is least at the balanced factors of δ.

    Takes what `first_order` takes. Derived; docs/theory.md, "A real adapter: first-order measures".
    """
    inner, pull, size = 0.0, 0.0, 0.0
    for t, (u, v) in factors.items():
        u, v = (w.to("cpu", torch.float64) for w in (u, v))
        M = gradients[t].to("cpu", torch.float64)
        left, sigma, right = product_svd(u, v)
        u, v = left * sigma.sqrt(), right * sigma.sqrt()
        down, across = M @ v, M.T @ u
        inner += float((down * u).sum())
        pull += float(down.square().sum() + across.square().sum())
        size += float(sigma.sum())
    if not inner < 0 < size:
        return FittedLam(None, 0.0)
    return FittedLam(-inner / size, min(1.0, 2 * inner**2 / (size * pull)))
