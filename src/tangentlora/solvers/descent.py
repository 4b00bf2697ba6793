"""LoRA as it is trained: first-order descent on the factors, F(u,v) = L̂(uvᵀ) + λ/2 Σ_t (‖u_t‖² + ‖v_t‖²).

One loop serves gradient descent with momentum, Adam and L-BFGS; torch.optim does the steps, the Jacobian
operator the gradients ∇_u F = M v + λu, ∇_v F = Mᵀu + λv (plus 2ΠQ where the objective is perturbed).
Source: Jang, Lee, Ryu 2024, sections 2 and 5; their published loop differs, see docs/solvers.md.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import torch

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem, half_squares
from tangentlora.problem.proof import proved
from tangentlora.problem.threads import fitting_threads
from tangentlora.progress import bar
from tangentlora.solvers.factored import Evaluation, FactoredObjective, Stacked, perturbation, stack
from tangentlora.solvers.lowest import Lowest, require_finite
from tangentlora.solvers.newton import sharpness
from tangentlora.solvers.schedule import StepSize, log_epochs
from tangentlora.solvers.solution import Monitor, Record, Solution, Solver, Status, changes, ended, measured
from tangentlora.solvers.spectral_start import spectral_start
from tangentlora.solvers.starts import escaping_start, given_start, paper_start, peft_start
from tangentlora.tangent.span import Span, whole, widen

# The objective, relative to its start or 1, at which a given rate counts as growing without bound
_UNBOUNDED = 1e6

# ‖∇F‖ relative to ‖(u, v)‖ at which a run stands still: F is then flat to its last digits
_STILL = 1e-8

# torch's L-BFGS forgets curvature pairs with yᵀs ≤ 1e-10; near the small start ours are smaller
_LBFGS_SCALE = 1e8


@dataclass(frozen=True)
class Descent(Solver):
    """Train rank-r factors from the paper's start: A = vᵀ Gaussian of standard deviation 1/(√r·n), B = u = 0.

    `initialisation="spectral"` starts at the escape from δ = 0 instead: up to r leading singular pairs of
    each M_t(0) that exceed λ, with a step by line search; columns that are left start as the paper's.
    `initialisation="peft"` draws A as PEFT does, uniform with standard deviation 1/√(3n). `init_scale`
    multiplies what is drawn of A. `learning_rate` None chooses one. For SGD it is 1/sharpness at the spectral
    start, halved when the objective rises, and, back at the last logged epoch, when it exceeds its start
    (with minibatches, twice its start); 1e-3 for AdamW; 1 with a line search for L-BFGS. The examples
    are taken in their order, in minibatches of `batch_size`; the objective that is logged is always that of
    all of them. `method="adamw"` keeps the penalty in the objective, since decoupled decay is a different
    penalty. `freeze_a` trains u alone. `perturbation` ε adds Σ_t ⟨Π_t, Q_tQ_tᵀ⟩ with random Π_t ⪰ 0, ‖Π_t‖₂ =
    ε. `published` imitates the authors' loop, in which weight decay has no effect: the steps see λ = 0, and F
    and its gap are logged with the problem's λ. The run ends early once the gap is within `tolerance` or
    nothing moves; L-BFGS counts the passes of its line search as epochs.
    """

    rank: int = 8
    method: Literal["sgd", "adamw", "lbfgs"] = "sgd"
    epochs: int = 1000
    learning_rate: float | None = None
    momentum: float = 0.9
    batch_size: int | None = None
    freeze_a: bool = False
    perturbation: float = 0.0
    published: bool = False
    initialisation: Literal["paper", "spectral", "peft"] = "paper"
    seed: int = 0
    tolerance: float = 1e-6
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.method != "sgd" and self.momentum != type(self).momentum:
            raise InputError(
                f"got momentum {self.momentum} for {self.method}, where it has no say, expected it only with "
                "sgd: leave it out, or change the method"
            )
        if not 0 < self.init_scale < math.inf:
            raise InputError(
                f"got an initial scale of {self.init_scale}, expected a positive number, 1 for A as it is "
                "drawn: change it"
            )

    def check(self, problem: Problem) -> None:
        """Raise InputError for a rank outside 1..min(m,n) or settings out of range."""
        most = min(min(shape) for shape in problem.jacobian.shapes.values())
        if not 1 <= self.rank <= most:
            raise InputError(
                f"got rank {self.rank}, expected 1 to {most}, the smaller side of the smallest adapted "
                "matrix: change --rank"
            )
        if self.epochs < 1:
            raise InputError(f"got {self.epochs} epochs, expected at least one: change --epochs")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise InputError(f"got learning rate {rate}, expected a positive one: change --learning-rate")
        size = problem.jacobian.n_examples if self.batch_size is None else self.batch_size
        if not (0 <= self.momentum < 1 and 0 <= self.perturbation < math.inf and size >= 1):
            raise InputError(
                f"got momentum {self.momentum}, perturbation {self.perturbation} and minibatches of {size}, "
                "expected momentum in [0, 1), a perturbation of at least 0 and minibatches of at least one "
                "example: change them"
            )
        if self.method == "lbfgs" and size < problem.jacobian.n_examples:
            raise InputError(
                f"got minibatches of {size} for L-BFGS, expected all {problem.jacobian.n_examples} "
                "examples in each step, since its curvature mixes them: leave out --minibatch-size or "
                "use --solver sgd"
            )

    def solve(
        self,
        problem: Problem,
        monitor: Monitor | None = None,
        *,
        progress: bool = False,
        start: Factors | None = None,
    ) -> Solution:
        """Return the trained factors; raises InputError as `check` does.

        The columns of a `start` come first, as they are, and what is drawn of A fills up the rank. Raises
        InputError where it has more columns than that, and beside a spectral start.
        """
        self.check(problem)
        if start is not None and self.initialisation == "spectral":
            raise InputError(
                "got a start and the spectral initialisation, expected one of them: leave one out"
            )
        with fitting_threads(problem.contrasted.jacobian):
            return self._train(problem, monitor, progress, start)

    def _train(
        self, problem: Problem, monitor: Monitor | None, progress: bool, given: Factors | None
    ) -> Solution:
        trained = problem.with_lam(0.0) if self.published else problem
        unseen = problem.lam - trained.lam  # the part of λ that is logged and does not act
        start = self._start(trained, given)
        inner, span = self._coordinates(trained, start, from_zero=given is None)
        stacked = stack(span.lower(start))
        factors, kept = stacked.factors, _copy(stacked.factors)
        noise = perturbation(inner.jacobian.shapes, self.perturbation, self.seed, inner.f0)
        complete = FactoredObjective(inner, noise)
        batches = [FactoredObjective(part, noise) for part in _batches(inner, self.batch_size)]
        step = StepSize(
            self._optimizer(stacked, trained), adaptive=self.learning_rate is None and self.method == "sgd"
        )
        value, batched = complete.value(factors), len(batches) > 1
        far = 2.0 * max(1.0, value)
        above = far if batched else value + 1e-9 * max(1.0, value)
        limit = above if step.adaptive else _UNBOUNDED * max(1.0, value)
        require_finite(value)
        best = Lowest()
        count: Counter[str] = Counter()
        history: list[Record] = []
        rates: list[tuple[int, float]] = []
        trace: list[tuple[int, float]] = []
        status = Status.EPOCHS_SPENT
        waiting = sorted(log_epochs(self.epochs), reverse=True)
        with bar(self.epochs, f"rank {self.rank}", "epoch", progress) as shown:
            while True:
                epoch = count["examples"] // problem.jacobian.n_examples
                shown.update(min(epoch, self.epochs) - shown.n)
                now = complete.evaluate(factors) if epoch >= waiting[-1] else None
                full = now.value if now is not None else complete.value(factors) if batched else None
                reached = (value, *(() if now is None else (now.value,)))
                if not all(found <= limit for found in reached):  # a NaN is not within it either
                    stacked.read(kept)
                    trace = [point for point in trace if point[0] <= history[-1].epoch]
                    if not step.retreat(0.5 if all(found <= far for found in reached) else 0.25):
                        status = Status.DIVERGED
                        break
                    if epoch >= self.epochs:
                        break
                elif now is not None:
                    kept = _copy(factors)
                    waiting = [later for later in waiting if later > epoch]
                    squares = half_squares(factors)
                    objective = now.value + unseen * squares
                    gap = now.loss + problem.lam * squares - problem.reduced[0].dual_value(now.a)
                    history.append(measured(Record(epoch, objective, gap), span.lift(kept), monitor))
                    best.offer(objective, gap, kept)
                    status = self._verdict(problem, history[-1], now, factors, span)
                    if status is not Status.EPOCHS_SPENT or not waiting:
                        trace.append((epoch, objective))
                        break
                penalty = unseen * half_squares(factors) if self.published else 0.0
                rates.append((epoch, step.rate))
                value = self._pass(batches, stacked, step.optimizer, count)
                if full is not None:  # with minibatches the mean over the steps is another measure
                    value = full
                trace.append((epoch, value + penalty))
                step.observe(value)
        if not self.published:  # whose steps see another objective than the one that is logged
            status = ended(status, history)
            lowest = span.lift(best.factors)
            if status is not Status.GLOBAL_OPTIMUM or best.certain(problem, lowest, self.tolerance):
                kept = best.factors
        return Solution(problem, span.lift(kept), status, tuple(history), epoch, tuple(trace), changes(rates))

    def _start(self, problem: Problem, given: Factors | None) -> Factors:
        if given is not None:
            return given_start(problem, given, self._drawn(problem), self.rank)
        drawn = self._drawn(problem)
        return drawn if self.initialisation != "spectral" else escaping_start(problem, drawn, self.rank)

    def _drawn(self, problem: Problem) -> Factors:
        draw = peft_start if self.initialisation == "peft" else paper_start
        return draw(problem, self.rank, self.seed, self.init_scale)

    def _coordinates(self, problem: Problem, start: Factors, *, from_zero: bool) -> tuple[Problem, Span]:
        """Return the problem to train in, and the span that lifts its factors back.

        Gradient descent takes the same steps in every orthonormal basis, and L-BFGS does but for the length
        that its first line search tries, so they train in that of the Jacobian and the start. Adam's steps
        depend on the basis, Π fills the whole space, and so may the u of a start that was given: those runs
        stay in the original coordinates.
        """
        if self.method == "adamw" or self.perturbation or not from_zero:
            return problem.contrasted, whole(problem.jacobian)
        reduced, span = problem.reduced
        jacobian, span = widen(reduced.jacobian, span, {name: v for name, (_, v) in start.items()})
        return replace(reduced, jacobian=jacobian), span

    def _optimizer(self, stacked: Stacked, problem: Problem) -> torch.optim.Optimizer:
        moving = [stacked.u] if self.freeze_a else [stacked.u, stacked.v]
        rate = self.learning_rate
        if self.method == "adamw":
            return torch.optim.AdamW(moving, lr=rate or 1e-3, weight_decay=0.0)
        if self.method == "lbfgs":
            return torch.optim.LBFGS(
                moving,
                lr=rate or 1.0,
                max_iter=1,
                max_eval=30,
                history_size=20,
                line_search_fn="strong_wolfe",
                tolerance_grad=0.0,
                tolerance_change=0.0,
            )
        return torch.optim.SGD(moving, lr=rate or 1 / _curvature(problem.reduced[0]), momentum=self.momentum)

    def _pass(
        self,
        batches: list[FactoredObjective],
        stacked: Stacked,
        optimizer: torch.optim.Optimizer,
        count: Counter[str],
    ) -> float:
        """Take one step on every batch and return the mean of the objective before the steps."""
        scale = _LBFGS_SCALE if self.method == "lbfgs" else 1.0
        total, n = 0.0, sum(len(batch.problem.f0) for batch in batches)
        for batch in batches:
            value = float(optimizer.step(batch.closure(stacked, scale, count)))  # type: ignore[arg-type]
            total += value / scale * len(batch.problem.f0) / n
        return total

    def _verdict(
        self, problem: Problem, record: Record, now: Evaluation, factors: Factors, span: Span
    ) -> Status:
        """Say whether the run is over, and how; EPOCHS_SPENT where it is not."""
        if record.gap <= self.tolerance * max(1.0, record.objective) and proved(
            problem, span.lift(factors), record.gap, self.tolerance
        ):
            return Status.GLOBAL_OPTIMUM
        size = math.sqrt(sum(float(w.square().sum()) for pair in factors.values() for w in pair))
        if record.epoch and now.gradient_norm(self.freeze_a) <= _STILL * max(1.0, size):
            return Status.STATIONARY
        return Status.EPOCHS_SPENT


def _copy(factors: Factors) -> Factors:
    return {name: (u.clone(), v.clone()) for name, (u, v) in factors.items()}


def _curvature(problem: Problem) -> float:
    """Return ‖∇²F‖₂ at the spectral start, which is near the valley that the run will follow; positive."""
    start = spectral_start(problem, problem.zero(), problem.jacobian.n_outputs)
    if any(u.shape[1] for u, _ in start.values()):
        return sharpness(problem, start)
    # 0 is the optimum: there ∇²F has the blocks λI and M_t with ‖M_t‖₂ ≤ λ
    return 2 * problem.lam or 1.0


def _batches(problem: Problem, size: int | None) -> list[Problem]:
    n = problem.jacobian.n_examples
    if size is None or size >= n:
        return [problem]
    parts = []
    for start in range(0, n, size):
        index = list(range(start, min(start + size, n)))
        part = problem.rows.select(index)
        parts.append(Problem(part, problem.f0[index], problem.y[index], problem.loss, problem.lam))
    return parts
