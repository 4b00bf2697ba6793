"""Full fine-tuning: accelerated proximal gradient on P(δ) = L̂(δ) + λ Σ_t ‖δ_t‖_* over all of δ.

δ⁺ = prox_{λ/L ‖·‖_*}(Y − ∇L̂(Y)/L), Y = δ + β(δ − δ⁻), with L found by backtracking and β restarted when
the step turns against the momentum. A given rate η stands for 1/L, a given momentum for β, and β = 0 is plain
proximal gradient. Iterates stay thin factors: every product with Y − ∇L̂(Y)/L is a few tall products.
Sources: Beck and Teboulle 2009 (FISTA); O'Donoghue and Candès 2015 (adaptive restart).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem, half_squares
from tangentlora.problem.proof import proved
from tangentlora.problem.spectral import balance
from tangentlora.problem.threads import fitting_threads
from tangentlora.progress import bar
from tangentlora.solvers.lowest import Lowest, require_finite
from tangentlora.solvers.partial_svd import shrink_products
from tangentlora.solvers.schedule import log_epochs
from tangentlora.solvers.solution import Monitor, Record, Solution, Solver, Status, changes, ended, measured
from tangentlora.tangent.layer_rows import product
from tangentlora.tangent.operator import Product, Products

_UNBOUNDED = 1e6  # times the objective at the start, or 1: a given rate lets it grow without bound


@dataclass(frozen=True)
class _State:
    """δ and its predecessor, their outputs J δ, the momentum's clock and the right singular vectors."""

    delta: Factors
    before: Factors
    z: Float[Tensor, "N K"]
    z_before: Float[Tensor, "N K"]
    guess: dict[str, Float[Tensor, "n b"]]
    clock: float
    smooth: float


@dataclass(frozen=True)
class Proximal(Solver):
    """Train full updates δ_t, one iteration an epoch; the run ends early at a gap within `tolerance`.

    `learning_rate` η is kept as it is; None finds 1/η by backtracking, so that no plain step raises P.
    `momentum` None is that of FISTA, with restarts; a number β in [0, 1) is kept, and 0 is plain proximal
    gradient, which lowers P at every step where η < 2/L, L the smoothness of L̂.
    """

    epochs: int = 1000
    learning_rate: float | None = None
    momentum: float | None = None
    tolerance: float = 1e-6
    seed: int = 0

    def check(self, problem: Problem) -> None:
        """Raise InputError for less than one epoch, a rate that is not positive, momentum outside [0, 1)."""
        if self.epochs < 1:
            raise InputError(f"got {self.epochs} epochs, expected at least one: change --epochs")
        rate, momentum = self.learning_rate, self.momentum
        if rate is not None and not 0 < rate < math.inf:
            raise InputError(f"got learning rate {rate}, expected a positive one: change --learning-rate")
        if momentum is not None and not 0 <= momentum < 1:
            raise InputError(f"got momentum {momentum}, expected a number in [0, 1): change --momentum")

    def solve(
        self,
        problem: Problem,
        monitor: Monitor | None = None,
        *,
        progress: bool = False,
        start: Factors | None = None,
    ) -> Solution:
        """Return the updates as balanced thin factors (U√σ, V√σ); raises InputError as `check` does.

        A `start` is projected onto the span of the Jacobian, where it has the same outputs and no larger
        norm.
        """
        self.check(problem)
        with fitting_threads(problem.contrasted.jacobian):
            return self._train(problem, monitor, progress, start or {})

    def _train(self, problem: Problem, monitor: Monitor | None, progress: bool, start: Factors) -> Solution:
        inner, span = problem.reduced
        generator = torch.Generator().manual_seed(self.seed)
        begin, guess = inner.zero(), {name: v for name, (_, v) in inner.zero().items()}
        for name, (u, v) in span.lower(start).items():
            begin[name] = balance(u, v)
            guess[name] = begin[name][1] / begin[name][1].norm(dim=0)
        outputs = inner.jacobian.at(begin).forward()
        largest = float(inner.kernel_eigenvalues[-1])
        bound = max(inner.loss.smoothness * largest / len(inner.f0), sys.float_info.min * 2**8)
        pace = _Pace(self.momentum, None if self.learning_rate is None else 1 / self.learning_rate, bound)
        state = _State(begin, begin, outputs, outputs, guess, 1.0, pace.fixed or bound / 16)
        history: list[Record] = []
        rates: list[tuple[int, float]] = []
        best = Lowest()
        trace: list[tuple[int, float]] = []
        logged, status, epoch = log_epochs(self.epochs), Status.EPOCHS_SPENT, 0
        with bar(self.epochs, "full", "epoch", progress) as shown:
            while True:
                objective = inner.empirical_loss(inner.f0 + state.z) + inner.lam * half_squares(state.delta)
                if not trace:
                    require_finite(objective)
                if not objective <= _UNBOUNDED * max(1.0, trace[0][1] if trace else objective):
                    status = Status.DIVERGED
                    break
                trace.append((epoch, objective))
                if epoch in logged:
                    gap = inner.gap(state.delta)
                    answer = span.lift(state.delta)
                    history.append(measured(Record(epoch, objective, gap), answer, monitor))
                    best.offer(objective, gap, state.delta)
                    if gap <= self.tolerance * max(1.0, objective) and proved(
                        problem, answer, gap, self.tolerance
                    ):
                        status = Status.GLOBAL_OPTIMUM
                        break
                if epoch == self.epochs:
                    break
                state = _iterate(inner, state, pace, generator)
                rates.append((epoch, self.learning_rate or 1 / state.smooth))
                epoch += 1
                shown.update()
        status = ended(status, history)
        lowest = span.lift(best.factors)
        if status is not Status.GLOBAL_OPTIMUM or best.certain(problem, lowest, self.tolerance):
            answer = lowest
        return Solution(problem, answer, status, tuple(history), epoch, tuple(trace), changes(rates))


@dataclass(frozen=True)
class _Pace:
    """The momentum that is kept, None for FISTA's; the 1/η that is kept, None to search it up to `most`."""

    momentum: float | None
    fixed: float | None
    most: float


def _iterate(problem: Problem, state: _State, pace: _Pace, generator: torch.Generator) -> _State:
    bound = pace.most if pace.fixed is None else pace.fixed
    clock = 0.5 * (1 + math.sqrt(1 + 4 * state.clock**2))
    beta = (state.clock - 1) / clock if pace.momentum is None else pace.momentum
    z_ahead = state.z + beta * (state.z - state.z_before)
    a = problem.dual_point(problem.f0 + z_ahead)
    products = problem.jacobian.adjoint_products(a)
    value = problem.empirical_loss(problem.f0 + z_ahead)
    smooth = min(0.9 * state.smooth, bound) if pace.fixed is None else bound
    while True:
        fresh, guess = _step(problem, state, beta, products, smooth, generator)
        z = problem.jacobian.at(fresh).forward()
        loss = problem.empirical_loss(problem.f0 + z)
        # ⟨∇L̂(Y), δ⁺ − Y⟩ needs no matrices: it is ⟨a, z⁺ − z_Y⟩
        linear = float((a * (z - z_ahead)).sum())
        distance = _square_distance(fresh, state, beta)
        if smooth >= bound or loss <= value + linear + 0.5 * smooth * distance + 1e-14 * max(1.0, value):
            break
        smooth = min(1.5 * smooth, bound)
    # ⟨Y − δ⁺, δ⁺ − δ⟩ > 0 means that the momentum carried too far
    if pace.momentum is None and _turned(fresh, state, beta):
        clock = 1.0
    return replace(
        state,
        delta=fresh,
        before=state.delta,
        z=z,
        z_before=state.z,
        guess=guess,
        clock=clock,
        smooth=smooth,
    )


def _ahead(state: _State, name: str, beta: float) -> tuple[Tensor, Tensor]:
    """Return Y_t = (1+β)δ_t − βδ_t⁻ as stacked factors."""
    (u, v), (u_before, v_before) = state.delta[name], state.before[name]
    return torch.cat([u, u_before], 1), torch.cat([(1 + beta) * v, -beta * v_before], 1)


def _step(
    problem: Problem,
    state: _State,
    beta: float,
    products: dict[str, Products],
    smooth: float,
    generator: torch.Generator,
) -> tuple[Factors, dict[str, Tensor]]:
    """Return δ⁺ = prox(Y − ∇L̂(Y)/L) and its right singular vectors, from the products with ∇_t L̂(Y)."""
    fresh, guess = {}, {}
    for name, (times, back) in products.items():
        u, v = _ahead(state, name, beta)

        def right(V: Tensor, u: Tensor = u, v: Tensor = v, times: Product = times) -> Tensor:
            return product(u, v.T @ V).sub_(times(V), alpha=1 / smooth)

        def left(U: Tensor, u: Tensor = u, v: Tensor = v, back: Product = back) -> Tensor:
            return product(v, u.T @ U).sub_(back(U), alpha=1 / smooth)

        *pair, guess[name] = shrink_products(right, left, state.guess[name], problem.lam / smooth, generator)
        fresh[name] = (pair[0], pair[1])
    return fresh, guess


def _square_distance(fresh: Factors, state: _State, beta: float) -> float:
    """Return Σ_t ‖δ_t⁺ − Y_t‖²."""
    total = 0.0
    for name, (u, v) in fresh.items():
        yu, yv = _ahead(state, name, beta)
        total += _inner(
            torch.cat([u, yu], 1), torch.cat([v, -yv], 1), torch.cat([u, yu], 1), torch.cat([v, -yv], 1)
        )
    return total


def _turned(fresh: Factors, state: _State, beta: float) -> bool:
    """Return whether Σ_t ⟨Y_t − δ_t⁺, δ_t⁺ − δ_t⟩ > 0."""
    total = 0.0
    for name, (u, v) in fresh.items():
        yu, yv = _ahead(state, name, beta)
        du, dv = state.delta[name]
        total += _inner(
            torch.cat([yu, u], 1), torch.cat([yv, -v], 1), torch.cat([u, du], 1), torch.cat([v, -dv], 1)
        )
    return total > 0


def _inner(u: Tensor, v: Tensor, s: Tensor, t: Tensor) -> float:
    """Return ⟨uvᵀ, stᵀ⟩ without forming either."""
    return float(((s.T @ u) * (t.T @ v)).sum())
