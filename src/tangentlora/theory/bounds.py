"""Theorem 3 as a tool: what the training examples promise for unseen ones, with every constant measured.

Two bounds, side by side. The paper's, as recalled, is about the answer at one prescribed λ; the measured one
holds for every update of the ball Σ_t ‖δ_t‖_* ≤ D at once,

    L(δ) ≤ L̂(δ) + [L(0) − L̂(0)] + 2·√2·G·D·E_σ max_t ‖(1/N) Σ_ik σ_ik J_ik,t‖₂ + 6·G·D·ρ·√(log(2/η)/(2N)).

The first after Jang, Lee, Ryu 2024, section 5; the second derived in docs/theory.md, "Generalisation".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem, nuclear_norm
from tangentlora.tangent.jacobian import Jacobian

_ERRORS = 2.0
"""Standard errors that are added to the Monte Carlo mean before it enters the bound."""


@dataclass(frozen=True)
class Complexity:
    """A Monte Carlo mean of max_t ‖(1/N) Σ_ik σ_ik J_ik,t‖₂ over random signs, and its standard error."""

    mean: float
    standard_error: float
    draws: int


@dataclass(frozen=True)
class RecalledBound:
    """The paper's Theorem 3 [recalled]: with λ as prescribed, L(δ̂) − L(δ°) < `excess` with chance > 1 − η.

    λ = 2(2+ε)·√K·G·R/√N·(2+√log(1/η)) and excess = ‖δ°‖_*·(2+ε)·λ. `R` is the largest ‖J_k(x)‖_F met on the
    examples given: the theorem asks for one of the population. `radius` stands in for ‖δ°‖_*, which nobody
    knows. From `zero_from` on, the answer is δ = 0. It is vacuous where the excess is not below `trivial`.
    """

    lam: float
    excess: float
    radius: float
    R: float
    epsilon: float
    zero_from: float
    trivial: float

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing: not even that the answer beats doing nothing or guessing."""
        return not (self.excess < self.trivial and self.lam < self.zero_from)


@dataclass(frozen=True)
class MeasuredBound:
    """The bound of the module's head [derived]: L(δ) ≤ `bound` with chance ≥ 1 − η, up to what is measured.

    `radius` D = 2^j is the least power of two that is not below Σ_t ‖δ_t‖_*; fitting it to the data costs
    η/(3(1+|j|)²) in place of η. `rho` is the largest (Σ_k max_t ‖J_ik,t‖₂²)^½ met. The complexity enters with
    two standard errors added.
    """

    bound: float
    complexity: Complexity
    complexity_term: float
    deviation_term: float
    radius: float
    confidence_spent: float
    rho: float
    trivial: float

    @property
    def vacuous(self) -> bool:
        """Whether the bound is no better than the loss before training or that of a uniform guess."""
        return not self.bound < self.trivial


@dataclass(frozen=True)
class Generalisation:
    """Both bounds on one answer beside what was measured; losses are means of ℓ.

    Held-out losses are None where no examples were held out; then L(0) is taken to be L̂(0).
    """

    train_loss: float
    train_loss_before: float
    held_out_loss: float | None
    held_out_loss_before: float | None
    nuclear_norm: float
    lipschitz: float
    n_examples: int
    n_outputs: int
    eta: float
    recalled: RecalledBound
    measured: MeasuredBound

    def sentences(self) -> list[str]:
        """Return what the bounds say, the vacuous ones called so."""
        m, r = self.measured, self.recalled
        held = "" if self.held_out_loss is None else f" The held-out loss is {self.held_out_loss:.4g}."
        rows = "training" if self.held_out_loss_before is None else "held-out"
        before = self.train_loss_before if self.held_out_loss_before is None else self.held_out_loss_before
        side = "vacuous: not below" if m.vacuous else "below"
        says = f"{side} {m.trivial:.4g}, the smaller of the loss before training and that of a uniform guess"
        zero = ", at which the answer is δ = 0," if r.lam >= r.zero_from else ""
        if self.nuclear_norm == 0:
            return [f"The answer is δ = 0: nothing was learnt, and there is nothing to bound.{held}"]
        return [
            f"Measured bound: with chance {1 - self.eta:.0%} the loss on unseen examples is at most "
            f"{m.bound:.4g} ({says}), if before training it is the {before:.4g} of the {rows} rows.{held}",
            f"Theorem 3 [recalled] prescribes λ = {r.lam:.4g}{zero} and bounds that answer's loss above the "
            f"least possible one by {r.excess:.4g}{' (vacuous)' if r.vacuous else ''}, if the optimum's "
            f"nuclear norm is the {r.radius:.4g} of the answer at hand.",
            f"The largest gradients, R = {r.R:.4g} and ρ = {m.rho:.4g}, were measured on the examples given; "
            "the bounds need them for the whole population.",
        ]


def generalisation(
    problem: Problem,
    factors: Factors,
    held_out: Problem | None = None,
    *,
    eta: float = 0.05,
    epsilon: float = 0.1,
    draws: int = 200,
    seed: int = 0,
) -> Generalisation:
    """Return both bounds on the loss of an answer on unseen examples, and its held-out loss.

    `held_out` states the same loss on other examples; its λ is not used. Raises InputError for a loss without
    a Lipschitz constant, η outside (0, 1), ε ≤ 0, fewer than two draws, or other outputs held out.
    """
    G = problem.loss.lipschitz
    if not math.isfinite(G):
        raise InputError(
            f"got the {problem.loss.name} loss, which has no Lipschitz constant, expected one that has: use "
            "cross-entropy or the logistic loss"
        )
    if not (0 < eta < 1 and epsilon > 0):
        raise InputError(
            f"got η = {eta} and ε = {epsilon}, expected η between 0 and 1 and ε above 0: change them"
        )
    if held_out is not None and held_out.f0.shape[1] != problem.f0.shape[1]:
        raise InputError(
            f"got {held_out.f0.shape[1]} outputs held out and {problem.f0.shape[1]} in training, expected "
            "the same network and labels: linearise both sets alike"
        )
    n, k = problem.f0.shape
    before, loss = problem.empirical_loss(problem.f0), problem.empirical_loss(problem.outputs(factors))
    unseen = None if held_out is None else held_out.empirical_loss(held_out.outputs(factors))
    unseen_before = None if held_out is None else held_out.empirical_loss(held_out.f0)
    L0 = before if unseen_before is None else unseen_before
    trivial = min(L0, math.log(max(k, 2)))
    norm, sets = nuclear_norm(factors), [p for p in (problem, held_out) if p is not None]
    R = max(float(block_norms(p.rows)[0].max()) for p in sets)
    # in contrasts, where the loss has the same G and fewer outputs are summed
    rho = max(float(block_norms(p.contrasted.rows)[1].square().sum(1).sqrt().max()) for p in sets)
    lam = 2 * (2 + epsilon) * math.sqrt(k) * G * R / math.sqrt(n) * (2 + math.sqrt(math.log(1 / eta)))
    M = problem.jacobian.adjoint(problem.dual_point(problem.f0))
    zero_from = max(float(torch.linalg.matrix_norm(block, 2)) for block in M.values())
    recalled = RecalledBound(lam, norm * (2 + epsilon) * lam, norm, R, epsilon, zero_from, trivial)

    j = math.ceil(math.log2(norm)) if norm > 0 else 0
    D, spent = 2.0**j if norm > 0 else 0.0, eta / (3 * (1 + abs(j)) ** 2)
    complexity = rademacher_complexity(problem.contrasted.rows, draws, seed)
    mean = complexity.mean + _ERRORS * complexity.standard_error
    width = 2 * math.sqrt(2) * G * D * mean
    deviation = 6 * G * D * rho * math.sqrt(math.log(2 / spent) / (2 * n))
    bound = loss + (L0 - before) + width + deviation
    measured = MeasuredBound(bound, complexity, width, deviation, D, spent, rho, trivial)
    return Generalisation(loss, before, unseen, unseen_before, norm, G, n, k, eta, recalled, measured)


def rademacher_complexity(jacobian: Jacobian, draws: int = 200, seed: int = 0) -> Complexity:
    """Return E_σ max_t ‖(1/N) Σ_ik σ_ik J_ik,t‖₂ over independent signs σ_ik = ±1, by Monte Carlo.

    It is the empirical Rademacher complexity of the outputs over the ball Σ_t ‖δ_t‖_* ≤ 1, since the dual of
    Σ_t ‖·‖_* is max_t ‖·‖₂. Raises InputError for fewer than two draws, which have no standard error.
    """
    if draws < 2:
        raise InputError(f"got {draws} draws of signs, expected at least 2 for a standard error: take more")
    n, k = jacobian.n_examples, jacobian.n_outputs
    generator = torch.Generator().manual_seed(seed)
    signs = 2.0 * torch.randint(0, 2, (draws, n, k), generator=generator).to(jacobian.zeros()) - 1
    largest = [
        max(float(torch.linalg.matrix_norm(block, 2)) for block in jacobian.adjoint(sign / n).values())
        for sign in signs
    ]
    values = torch.tensor(largest, dtype=torch.float64)
    return Complexity(float(values.mean()), float(values.std() / math.sqrt(draws)), draws)


def block_norms(jacobian: Jacobian) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Return (Σ_t ‖J_ik,t‖_F²)^½ and max_t ‖J_ik,t‖₂ for every example and output, without forming a block.

    With x = QRᵀ stacked by rows as columns, J = (Σ_ρ g_ρk R_ρ) Qᵀ has the norms of its first factor.
    """
    n, k = jacobian.n_examples, jacobian.n_outputs
    squares = torch.zeros(n, k, dtype=torch.float64)
    largest = torch.zeros(n, k, dtype=torch.float64)
    for rows in jacobian.layers.values():
        counts = rows.counts.tolist()
        pairs = zip(torch.split(rows.x.cpu(), counts), torch.split(rows.g.cpu(), counts), strict=True)
        for i, (x, g) in enumerate(pairs):
            if len(x):
                core = torch.linalg.qr(x.double().T, mode="r").R  # (q, rows): xᵀ = Q R
                gram = torch.einsum("qr,rkm->kqm", core, g.double())
                values = torch.linalg.eigvalsh(gram @ gram.mT).clamp(min=0)
                squares[i] += values.sum(1)
                largest[i] = torch.maximum(largest[i], values[:, -1].sqrt())
    return squares.sqrt(), largest
