"""How far the real network's objective falls from a trained update: at its rank, and in new directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float, Shaped
from torch import Tensor

from tangentlora.blocks import Blocks, Factors
from tangentlora.models.attach import attached
from tangentlora.problem.objective import half_squares
from tangentlora.problem.spectral import balance
from tangentlora.studies.line_search import Fall, line_search
from tangentlora.studies.opened import Opened
from tangentlora.theory.first_order import FirstOrder, escape_factors

_ALONG_GRADIENT = 2
"""Most evaluations along −∇F, which is known exactly."""


@dataclass(frozen=True, eq=False)
class RealObjective:
    """The real objective F(u,v) = L(W + uvᵀ) + Σ λ_t/2 (‖u_t‖² + ‖v_t‖²), from the balanced factors of δ."""

    opened: Opened
    y: Shaped[Tensor, " N"]
    lam: dict[str, float]
    before: Float[Tensor, "N K"]
    after: Float[Tensor, "N K"]
    batch_size: int

    @cached_property
    def loss(self) -> float:
        """L at W + δ."""
        return self.mean_loss(self.after)

    @cached_property
    def _bend(self) -> float:
        """The second derivative of L along the change of the outputs from W to W + δ."""
        after = self.after.double()
        change = after - self.before.double()
        return float((self.opened.loss.hessian_product(after, self.y, change) * change).sum()) / len(self.y)

    @cached_property
    def balanced(self) -> Factors:
        """The balanced factors of δ in float64, where F is least for this δ."""
        return {t: balance(u.double(), v.double()) for t, (u, v) in self.opened.factors.items()}

    @cached_property
    def start(self) -> float:
        """F there, L + Σ λ_t ‖δ_t‖_*."""
        return self.loss + self._penalty(self.balanced)

    def along_gradient(self, gradients: Blocks, found: FirstOrder) -> Fall | None:
        """Return the fall along −∇F at the present rank; None where ∇F = 0."""
        balanced = self.balanced
        slope: Factors = {}
        for t, (u, v) in balanced.items():
            M = gradients[t].double()
            slope[t] = (M @ v + self.lam[t] * u, M.T @ u + self.lam[t] * v)
        square, size = 2 * half_squares(slope), 2 * half_squares(balanced)
        if not (square > 0 and self.start > 0):
            return None
        # A tenth of the factors is far. The curvature of F is that of its slack, λ + ‖M‖ at most, and the
        # loss's own, of which the way from W is a sample: (u,v)(1 + ε) moves the outputs by about 2ε·change.
        slack = max(layer.lam + layer.spectral_norm for layer in found.layers.values())
        first = min(0.1 * math.sqrt(size / square), 1 / (slack + 4 * self._bend / size))

        def moved(step: float) -> Factors:
            return {t: (u - step * slope[t][0], v - step * slope[t][1]) for t, (u, v) in balanced.items()}

        return line_search(
            lambda step: self._objective(moved(step)), self.start, square, first, _ALONG_GRADIENT
        )

    def along_escape(self, found: FirstOrder, most: int) -> Fall | None:
        """Return the fall along the escapes of all layers together; None where no layer has one."""
        rates = [layer.escape.rate for layer in found.layers.values() if layer.escape is not None]
        if not rates or not self.start > 0:
            return None
        slope = sum(rate**2 for rate in rates) / max(rates)
        used = [s for layer in found.layers.values() for s in layer.spectrum.values[: layer.used]]
        # F can fall by no more than itself, and a new direction is rarely longer than those in use. The loss
        # curves along it about as it does along δ.
        bounds = [0.2 * self.start / slope]
        if used:
            bounds.append(sum(used) / len(used))
        if self._bend > 0:
            bounds.append(slope * sum(s * s for s in used) / self._bend)
        first = min(bounds)
        return line_search(
            lambda tau: self._objective(escape_factors(self.balanced, found, tau)),
            self.start,
            slope,
            first,
            most,
        )

    def _objective(self, factors: Factors) -> float:
        inputs = self.opened.splits.train.inputs
        with attached(self.opened.network.module, self.opened.targets, factors):
            z = self.opened.network.predict(inputs, self.batch_size)
        return self.mean_loss(z) + self._penalty(factors)

    def mean_loss(self, z: Float[Tensor, "N K"]) -> float:
        """Return L of outputs of the training examples."""
        return float(self.opened.loss.value(z.double(), self.y).mean())

    def _penalty(self, factors: Factors) -> float:
        return sum(self.lam[t] * half_squares({t: pair}) for t, pair in factors.items())
