"""LoRA as it is trained: first-order descent on the factors, F(u,v) = L̂(uvᵀ) + λ/2 Σ_t (‖u_t‖² + ‖v_t‖²).

One loop serves gradient descent with momentum, Adam and L-BFGS; torch.optim does the steps, the Jacobian operator
the gradients ∇_u F = M v + λu, ∇_v F = Mᵀu + λv (plus 2ΠQ where the objective is perturbed).
Source: Jang, Lee, Ryu 2024, sections 2 and 5; their published loop differs, see docs/solvers.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.solvers.factored import FactoredObjective, perturbation
from tangentlora.solvers.newton import sharpness
from tangentlora.solvers.schedule import StepSize, log_epochs
from tangentlora.solvers.solution import Monitor, Record, Solution, Solver, Status
from tangentlora.solvers.spectral_start import spectral_start

_LBFGS_SCALE = (
    1e8  # torch's L-BFGS forgets curvature pairs with yᵀs ≤ 1e-10; near the small start ours are smaller
)


@dataclass(frozen=True)
class Descent(Solver):
    """Train rank-r factors from the paper's start: A = vᵀ Gaussian with standard deviation 1/(√r·n), B = u = 0.

    `learning_rate` None chooses one: for SGD from the curvature at the spectral start, halved when the objective
    rises; 1e-3 for AdamW; 1 with a line search for L-BFGS. The examples are taken in their order, in minibatches of
    `batch_size`. `method="adamw"` keeps the penalty in the objective, since decoupled decay is a different penalty.
    `freeze_a` trains u alone. `perturbation` ε adds Σ_t ⟨Π_t, Q_tQ_tᵀ⟩ with random Π_t ⪰ 0, ‖Π_t‖₂ = ε. The run ends
    early once the gap is within `tolerance` or nothing moves; L-BFGS counts the passes of its line search as epochs.
    """

    rank: int = 8
    method: Literal["sgd", "adamw", "lbfgs"] = "sgd"
    epochs: int = 1000
    learning_rate: float | None = None
    momentum: float = 0.9
    batch_size: int | None = None
    freeze_a: bool = False
    perturbation: float = 0.0
    seed: int = 0
    tolerance: float = 1e-6

    def solve(self, problem: Problem, monitor: Monitor | None = None, *, progress: bool = False) -> Solution:
        """Return the trained factors; raises InputError for a rank outside 1..min(m,n) or settings out of range."""
        from tqdm import tqdm

        self._check(problem)
        inner = problem.contrasted
        factors = self._start(inner)
        noise = perturbation(inner.jacobian.shapes, self.perturbation, self.seed, inner.f0)
        whole = FactoredObjective(inner, noise)
        batches = [FactoredObjective(batch, noise) for batch in _batches(inner, self.batch_size)]
        step = StepSize(
            self._optimizer(factors, inner), adaptive=self.learning_rate is None and self.method == "sgd"
        )
        scale = _LBFGS_SCALE if self.method == "lbfgs" else 1.0
        count: Counter[str] = Counter()
        history: list[Record] = []
        waiting = sorted(log_epochs(self.epochs), reverse=True)
        with tqdm(total=self.epochs, desc=f"rank {self.rank}", unit="epoch", disable=not progress) as bar:
            while True:
                epoch = count["examples"] // problem.jacobian.n_examples
                bar.update(min(epoch, self.epochs) - bar.n)
                if epoch >= waiting[-1]:
                    while waiting and epoch >= waiting[-1]:
                        waiting.pop()
                    status = self._log(whole, factors, epoch, history, monitor)
                    if status is not Status.EPOCHS_SPENT or not waiting:
                        break
                total = sum(
                    float(step.optimizer.step(batch.closure(factors, scale, count))) / len(batches)
                    for batch in batches
                )
                if not math.isfinite(total):
                    status = Status.DIVERGED
                    break
                step.observe(total)
        answer = {name: (u.detach().clone(), v.detach().clone()) for name, (u, v) in factors.items()}
        return Solution(problem, answer, status, tuple(history), epoch)

    def _check(self, problem: Problem) -> None:
        most = min(min(shape) for shape in problem.jacobian.shapes.values())
        if not 1 <= self.rank <= most:
            raise InputError(
                f"got rank {self.rank}, expected 1 to {most}, the smaller side of the smallest adapted matrix: "
                "change --rank"
            )
        if self.epochs < 1 or (self.learning_rate is not None and not self.learning_rate > 0):
            raise InputError(
                f"got {self.epochs} epochs at learning rate {self.learning_rate}, expected at least one epoch and a "
                "positive rate: change --epochs or --learning-rate"
            )
        batch = 1 if self.batch_size is None else self.batch_size
        if not 0 <= self.momentum < 1 or self.perturbation < 0 or batch < 1:
            raise InputError(
                f"got momentum {self.momentum}, perturbation {self.perturbation} and minibatches of {batch}, expected "
                "momentum in [0, 1), a perturbation of at least 0 and minibatches of at least one example: change them"
            )

    def _start(self, problem: Problem) -> Factors:
        generator = torch.Generator().manual_seed(self.seed)
        factors = {}
        for name, (m, n) in problem.jacobian.shapes.items():
            v = torch.randn(n, self.rank, generator=generator, dtype=torch.float64)
            v = v / (math.sqrt(self.rank) * n)
            factors[name] = (problem.f0.new_zeros(m, self.rank), v.to(problem.f0.device))
        return factors

    def _optimizer(self, factors: Factors, problem: Problem) -> torch.optim.Optimizer:
        moving: list[Tensor] = [w for pair in factors.values() for w in (pair[:1] if self.freeze_a else pair)]
        if self.method == "adamw":
            return torch.optim.AdamW(moving, lr=self.learning_rate or 1e-3, weight_decay=0.0)
        if self.method == "lbfgs":
            return torch.optim.LBFGS(
                moving,
                lr=self.learning_rate or 1.0,
                max_iter=1,
                max_eval=30,
                history_size=20,
                line_search_fn="strong_wolfe",
                tolerance_grad=0.0,
                tolerance_change=0.0,
            )
        rate = self.learning_rate
        if rate is None:
            start = spectral_start(problem, problem.zero(), problem.jacobian.n_outputs)
            rate = (1 - self.momentum) / sharpness(problem, start)
        return torch.optim.SGD(moving, lr=rate, momentum=self.momentum)

    def _log(
        self,
        whole: FactoredObjective,
        factors: Factors,
        epoch: int,
        history: list[Record],
        monitor: Monitor | None,
    ) -> Status:
        """Record the epoch and say whether the run is over."""
        now = whole.evaluate(factors)
        if not math.isfinite(now.value):
            return Status.DIVERGED
        gap = whole.problem.gap(factors)
        history.append(Record(epoch, now.value, gap, {} if monitor is None else monitor(factors)))
        if gap <= self.tolerance * max(1.0, now.value):
            return Status.GLOBAL_OPTIMUM
        size = math.sqrt(sum(float(w.square().sum()) for pair in factors.values() for w in pair))
        if epoch and now.gradient_norm(self.freeze_a) <= 1e-10 * max(1.0, size):
            return Status.STATIONARY
        return Status.EPOCHS_SPENT


def _batches(problem: Problem, size: int | None) -> Iterator[Problem]:
    n = problem.jacobian.n_examples
    if size is None or size >= n:
        yield problem
        return
    for start in range(0, n, size):
        index = list(range(start, min(start + size, n)))
        part = problem.jacobian.select(index)
        yield Problem(part, problem.f0[index], problem.y[index], problem.loss, problem.lam)
