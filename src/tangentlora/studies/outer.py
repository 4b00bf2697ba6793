"""Gauss–Newton on the real network: linearise at W + δ, solve to a certificate, move, linearise again.

With f the real network, step k minimises the convex P_k(δ) = L̂(f(W+δ_k) + J_k(δ − δ_k)) + λ Σ_t ‖δ_t‖_*,
and moves along δ_k + t(δ − δ_k), t = 1, ½, ¼, …, until the real P(δ) = L(f(W+δ)) + λ Σ_t ‖δ_t‖_* has fallen.
P_k(δ_k) = P(δ_k) and P_k is convex, so P falls to first order by t(P(δ_k) − min P_k) at least. Where the gap
of P_k at δ_k itself is 0, ‖M_t‖₂ ≤ λ and the rest of first-order optimality hold for the real network.
Derived; docs/adapters.md, "Continue from an adapter". Prox-linear steps: Burke and Ferris 1995 [recalled].
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.models.attach import attached
from tangentlora.problem.objective import Problem, nuclear_norm
from tangentlora.problem.spectral import RANK_TOLERANCE, balance
from tangentlora.progress import bar
from tangentlora.solvers.certified import truncate
from tangentlora.solvers.solution import Solver
from tangentlora.studies.prepare import Prepared
from tangentlora.tangent.linearize import linearize
from tangentlora.tangent.tangent import Tangent

_SHARE = 1e-4  # of what the tangent promises, t(P − min P_k): the least fall that is taken
_HALVINGS = 20  # of t at most


class Ending(Enum):
    """How the steps ended; each value is a sentence that a user can act on."""

    SETTLED = (
        "The duality gap of the network linearised at the answer is within the tolerance: to first order, "
        "nothing near the answer is better."
    )
    STALLED = (
        "The last step lowered the real objective by no more than the tolerance, and the gap at the answer "
        "is still above it: the network bends too much for longer steps, so try a larger λ, or a smaller "
        "--tolerance for more steps."
    )
    STEPS_SPENT = (
        "The steps ended before the gap at the answer reached the tolerance: raise --outer, or "
        "continue from this adapter with --init-from."
    )


@dataclass(frozen=True)
class Step:
    """One step: the real objective before and after, and `promised` = P_k at its answer.

    `gap` = P_k(δ_k) − (lower bound on min P_k): 0 where δ_k is first-order optimal on the real network.
    `solved_gap` is that of the answer. `length` is t, 0 where nothing lowered the objective.
    """

    before: float
    gap: float
    promised: float
    solved_gap: float
    length: float
    after: float
    ranks: dict[str, int]


@dataclass(frozen=True, eq=False)
class Outer:
    """The answer, the steps to it, and the network linearised at it: `tangent.f0` = f(W+δ) − Jδ."""

    factors: Factors
    steps: tuple[Step, ...]
    ending: Ending
    objective: float
    tangent: Tangent
    problem: Problem


def gauss_newton(prepared: Prepared, solver: Solver, *, progress: bool = False) -> Outer:
    """Take at most `settings.outer` steps from the start, or from δ = 0; the real objective never rises.

    The steps end where the gap of P_k at δ_k is within half of `tolerance`·max(1, P), or P falls by no more
    than `tolerance`·max(1, P). Raises InputError as `linearize` and the solver do.
    """
    settings = prepared.settings
    real = _Real(prepared)
    factors = {
        name: balance(u.to(prepared.problem.f0), v.to(prepared.problem.f0))
        for name, (u, v) in (prepared.problem.zero() | (prepared.start or {})).items()
    }
    objective = real.objective(factors)
    steps: list[Step] = []
    ending = Ending.STEPS_SPENT
    with bar(settings.outer, "linearise, solve, move", "step", progress) as shown:
        while True:
            tangent, local = real.linearised(factors, progress)
            gap, enough = local.gap(factors), settings.tolerance * max(1.0, objective)
            settled = gap <= 0.5 * enough  # a margin, since the certificate counts its own rounding in
            if settled:
                ending = Ending.SETTLED
            if settled or ending is Ending.STALLED or len(steps) == settings.outer:
                break
            answer = solver.solve(local, start=factors).factors
            promised = local.objective(answer)
            length, taken, after = _along(real, factors, answer, objective, promised)
            ranks = {name: u.shape[1] for name, (u, _) in taken.items()}
            steps.append(Step(objective, gap, promised, local.gap(answer), length, after, ranks))
            shown.update()
            if objective - after <= enough:
                ending = Ending.STALLED
            factors, objective = taken, after
            if not length:
                break
    return Outer(factors, tuple(steps), ending, objective, tangent, local)


@dataclass(frozen=True, eq=False)
class _Real:
    """The real network on the training examples."""

    prepared: Prepared

    def objective(self, factors: Factors) -> float:
        """Return P(δ) = L(f(W+δ)) + λ Σ_t ‖δ_t‖_*."""
        prepared, problem = self.prepared, self.prepared.problem
        with attached(prepared.network.module, prepared.targets, factors):
            z = prepared.network.predict(prepared.splits.train.inputs, prepared.settings.batch_size)
        return problem.empirical_loss(z.to(problem.f0)) + problem.lam * nuclear_norm(factors)

    def linearised(self, factors: Factors, progress: bool) -> tuple[Tangent, Problem]:
        """Return the tangent at W + δ, written in δ itself, and its problem."""
        prepared, problem = self.prepared, self.prepared.problem
        if not any(u.shape[1] for u, _ in factors.values()):
            return prepared.train, problem
        with attached(prepared.network.module, prepared.targets, factors):  # no store: it knows W alone
            tangent = linearize(
                prepared.network,
                prepared.splits.train.inputs,
                prepared.targets,
                batch_size=prepared.settings.batch_size,
                progress=progress,
            )
        identity = tangent.identity | {"update_sha256": _sha256(factors)}
        jacobian = tangent.jacobian.to(torch.float64, problem.f0.device)
        f0 = tangent.f0.to(problem.f0) - jacobian.at(factors).forward()
        # as a store keeps it: the certificate is then of the very numbers that can be read back
        tangent = replace(tangent, f0=f0.to("cpu", torch.float32), identity=identity)
        return tangent, problem_of(prepared, tangent)


def problem_of(prepared: Prepared, tangent: Tangent) -> Problem:
    """Return the problem of the same data and λ on another tangent."""
    was = prepared.problem
    jacobian = tangent.jacobian.to(torch.float64, was.f0.device)
    return Problem(jacobian, tangent.f0.to(was.f0.device), was.y, was.loss, was.lam)


def _along(
    real: _Real, start: Factors, answer: Factors, objective: float, promised: float
) -> tuple[float, Factors, float]:
    """Return the first t at which P falls enough, the point there and P; t = 0 if none does."""
    length = 1.0
    for _ in range(_HALVINGS if objective > promised else 0):
        point = answer if length == 1 else blend(start, answer, length)
        value = real.objective(point)
        if value < objective and objective - value >= _SHARE * length * (objective - promised):
            return length, point, value
        length /= 2
    return 0.0, start, objective


def blend(start: Factors, answer: Factors, t: float) -> Factors:
    """Return balanced factors of (1−t)δ + tδ', of no more columns than its numerical rank."""

    def stacked(one: Float[Tensor, "_d _r"], other: Float[Tensor, "_d _q"]) -> Float[Tensor, "_d _s"]:
        return torch.cat([(1 - t) ** 0.5 * one, t**0.5 * other], 1)

    both = {
        name: (stacked(u, answer[name][0]), stacked(v, answer[name][1])) for name, (u, v) in start.items()
    }
    return truncate(both, RANK_TOLERANCE)


def _sha256(factors: Factors) -> str:
    digest = hashlib.sha256()
    for name in sorted(factors):
        for factor in factors[name]:
            digest.update(f"{name} {tuple(factor.shape)};".encode())
            digest.update(factor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
