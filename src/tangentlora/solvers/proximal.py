"""Full fine-tuning: accelerated proximal gradient on P(δ) = L̂(δ) + λ Σ_t ‖δ_t‖_* over all of δ.

δ⁺ = prox_{ηλ‖·‖_*}(Y − η∇L̂(Y)), Y = δ + β(δ − δ⁻), with η = N/(L·‖J‖²) from the tangent kernel, momentum
restarted when it points uphill, and a longer step wherever the descent inequality allows one.
Sources: Beck and Teboulle 2009 (FISTA); O'Donoghue and Candès 2015 (adaptive restart).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tangentlora.blocks import Blocks, Factors
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import shrink
from tangentlora.solvers.schedule import log_epochs
from tangentlora.solvers.solution import Monitor, Record, Solution, Solver, Status


@dataclass(frozen=True)
class Proximal(Solver):
    """Train full updates δ_t, in the coordinates of the Jacobian's span; one iteration is one epoch.

    The run ends early once the gap is within `tolerance`.
    """

    epochs: int = 1000
    tolerance: float = 1e-6

    def solve(self, problem: Problem, monitor: Monitor | None = None, *, progress: bool = False) -> Solution:
        """Return the updates as thin factors (U√σ, V√σ)."""
        from tqdm import tqdm

        inner, span = problem.reduced
        delta: Factors = inner.zero()
        dense = {name: u @ v.T for name, (u, v) in delta.items()}
        ahead, ahead_z, z = dense, inner.f0, inner.f0
        bound = inner.loss.smoothness * float(inner.kernel_eigenvalues[-1]) / len(inner.f0)
        smooth, momentum = bound / 64, 1.0
        history: list[Record] = []
        logged, status, epoch = log_epochs(self.epochs), Status.EPOCHS_SPENT, 0
        for epoch in tqdm(range(self.epochs + 1), desc="full", unit="epoch", disable=not progress):
            if epoch in logged:
                objective, gap = inner.factored_objective(delta), inner.gap(delta)
                measures = {} if monitor is None else monitor(span.lift(delta))
                history.append(Record(epoch, objective, gap, measures))
                if gap <= self.tolerance * max(1.0, objective):
                    status = Status.GLOBAL_OPTIMUM
                    break
            if epoch == self.epochs:
                break
            gradient = inner.jacobian.adjoint(inner.dual_point(ahead_z))
            loss = inner.empirical_loss(ahead_z)
            while True:
                fresh = {
                    name: shrink(ahead[name] - M / smooth, inner.lam / smooth) for name, M in gradient.items()
                }
                fresh_dense = {name: u @ v.T for name, (u, v) in fresh.items()}
                fresh_z = inner.outputs(fresh)
                move = {name: fresh_dense[name] - ahead[name] for name in ahead}
                model = loss + _inner(gradient, move) + 0.5 * smooth * _inner(move, move)
                rounding = 1e-14 * max(1.0, abs(loss))
                if smooth >= bound or inner.empirical_loss(fresh_z) <= model + rounding:
                    break
                smooth = min(2 * smooth, bound)
            step = {name: fresh_dense[name] - dense[name] for name in dense}
            if _inner(move, step) < 0:
                momentum = 1.0
            following = 0.5 * (1 + math.sqrt(1 + 4 * momentum**2))
            beta = (momentum - 1) / following
            ahead = {name: fresh_dense[name] + beta * step[name] for name in dense}
            ahead_z = fresh_z + beta * (fresh_z - z)
            dense, delta, z, momentum = fresh_dense, fresh, fresh_z, following
        return Solution(problem, span.lift(delta), status, tuple(history), epoch)


def _inner(a: Blocks, b: Blocks) -> float:
    return sum(float(torch.sum(a[name] * b[name])) for name in a)
