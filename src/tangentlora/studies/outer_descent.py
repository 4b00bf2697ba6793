"""Descent on the real network at the ranks there are: L-BFGS on L(f(W + uvᵀ)) + λ/2 Σ_t (‖u_t‖² + ‖v_t‖²)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tangentlora.blocks import Factors
from tangentlora.solvers.factored import Stacked, stack

_SCALE = 1e8  # of F: torch's L-BFGS forgets pairs of steps and gradients whose product is below 1e-10
_HISTORY = 20

Evaluate = Callable[[Factors], tuple[float, Factors]]
"""F and its gradient in (u_t, v_t)."""


def descended(evaluate: Evaluate, start: Factors, evaluations: int, rounding: float) -> Factors:
    """Return factors of the same shapes with a lower F, after about `evaluations` evaluations.

    Each line search ends where the strong Wolfe conditions hold, so that one may be a few evaluations more.
    The point returned is the lowest that was seen: the start itself where nothing lowered F. `rounding` is
    what F cannot resolve, relative to itself, in the network's precision.
    """
    if not any(u.shape[1] for u, _ in start.values()):
        return start
    stacked = stack(start)
    optimizer = torch.optim.LBFGS(
        [stacked.u, stacked.v],
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )
    lowest = _Lowest(evaluate, stacked, rounding)
    optimizer.step(lowest)  # type: ignore[no-untyped-call]
    return lowest.factors


class _Lowest:
    """What torch.optim calls for F and its gradient; it keeps the lowest point that it was called at.

    Among points whose F cannot be told apart in the network's precision the gradient decides: F is flat at a
    minimiser to second order, and the gap of the tangent there is not.
    """

    def __init__(self, evaluate: Evaluate, stacked: Stacked, rounding: float) -> None:
        self._evaluate, self._stacked, self._rounding = evaluate, stacked, rounding
        self.factors = dict(stacked.factors)
        self._value = self._slope = math.inf

    def __call__(self) -> float:
        value, gradient = self._evaluate(self._stacked.factors)
        vectors = [torch.cat([pair[part].T.flatten() for pair in gradient.values()]) for part in (0, 1)]
        slope = math.hypot(*(float(vector.norm()) for vector in vectors))
        noise = self._rounding * abs(value)
        if value < self._value - noise or (value <= self._value + noise and slope < self._slope):
            self._value, self._slope = min(value, self._value), slope
            self.factors = {t: (u.clone(), v.clone()) for t, (u, v) in self._stacked.factors.items()}
        self._stacked.u.grad, self._stacked.v.grad = (_SCALE * vector for vector in vectors)
        return _SCALE * value
