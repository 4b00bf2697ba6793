"""What the perturbation of Theorem 2 costs, and the duality gap of the perturbed objective itself.

Let C_t(a) = [[0, M_t],[M_tᵀ, 0]] with M_t = Σ_ik a_ik J_ik,t. Where λI + 2Π_t + C_t(a) ⪰ 0 for every t,

    F_Π(Q) ≥ ⟨a, f0⟩ − (1/N) Σ_i ℓ_i*(N a_i)   for factors Q of every rank.

Derived; docs/theory.md, "The perturbed problem". No margin for rounding is taken: a study's tool, not a
certificate.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.theory.hessian import Hessian


def perturbed_gap(problem: Problem, factors: Factors, noise: Mapping[str, Float[Tensor, "_s _s"]]) -> float:
    """Return F_Π(u,v) minus a lower bound on F_Π over all ranks: at least F_Π(u,v) − min F_Π.

    The bound is the dual value at s·a, a = ∇_z L̂, with the largest s ≤ 1 for which λI + 2Π_t + s·C_t(a) ⪰ 0:
    s = 1/max_t −λ_min(L⁻¹ C_t L⁻ᵀ), LLᵀ = λI + 2Π_t. Raises InputError where λI + 2Π_t is not positive.
    """
    hessian = Hessian(problem, factors, noise)
    a = problem.dual_point(hessian.z)
    steepest = 1.0
    for name, M in problem.jacobian.adjoint(a).items():
        m, n = M.shape
        C = M.new_zeros(m + n, m + n)
        C[:m, m:], C[m:, :m] = M, M.T
        base = problem.lam * torch.eye(m + n).to(M)
        base = base + 2 * noise[name] if name in noise else base
        L, failed = torch.linalg.cholesky_ex(base)
        if failed:
            raise InputError(
                f"got λ = {problem.lam} and a Π for {name!r} that is not positive semidefinite, expected "
                "λI + 2Π to be positive definite: give λ > 0 and Π as W Wᵀ"
            )
        half = torch.linalg.solve_triangular(L, C, upper=False)
        whitened = torch.linalg.solve_triangular(L, half.T, upper=False)
        steepest = max(steepest, -float(torch.linalg.eigvalsh(whitened)[:1].sum()))
    a = a / steepest
    lower = float((a * problem.f0).sum() - problem.loss.conjugate(len(a) * a, problem.y).mean())
    return hessian.value - lower


def perturbation_cost(noise: Mapping[str, Float[Tensor, "_s _s"]], nuclear_norm: float) -> float:
    """Return 2 max_t ‖Π_t‖₂ Σ_t ‖δ*_t‖_* ≥ P(δ̂) − min P for the global minimiser δ̂ of F_Π.

    `nuclear_norm` is Σ_t ‖δ*_t‖_* of an optimum of P, or a bound on it such as P(0)/λ.
    """
    largest = max((float(torch.linalg.matrix_norm(matrix, 2)) for matrix in noise.values()), default=0.0)
    return 2 * largest * nuclear_norm
