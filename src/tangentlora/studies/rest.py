"""One run on the perturbed objective F_Π: where it begins, and where it comes to rest."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, minres
from torch import Tensor

from tangentlora.blocks import Factors, pack, padded, unpack
from tangentlora.problem.objective import Problem
from tangentlora.solvers.factored import FactoredObjective
from tangentlora.solvers.spectral_start import spectral_start
from tangentlora.solvers.starts import paper_start
from tangentlora.theory.curvature import DENSE
from tangentlora.theory.hessian import Hessian

_RESTARTS = 10
_NO_MORE = 1e-9  # of F: a fall as small as that ends the descent
_POLISH = 12  # Newton steps; they converge quadratically
_FLAT = 1e-9  # eigenvalues below this share of the largest are rotations
_INEXACT = 1e-8  # MINRES's own measure of its residual
_PRODUCTS = 600  # Hessian products of one step by MINRES


class Start(Enum):
    """Where a run begins: small as in the paper, at large Gaussian factors, at a stationary point of rank
    one padded with zeros, at 0, or along the leading singular pairs of the gradient at 0."""

    PAPER = "paper"
    LARGE = "large Gaussian"
    SADDLE = "padded rank one"
    ZERO = "zero"
    SPECTRAL = "spectral"

    def is_random(self, rank: int) -> bool:
        """Whether another seed gives another start; at rank one SADDLE is ZERO."""
        return self in (Start.PAPER, Start.LARGE) or (self is Start.SADDLE and rank > 1)


def begin(problem: Problem, noise: Mapping[str, Tensor], rank: int, start: Start, seed: int) -> Factors:
    """Return the factors of a start; the same seed gives the same ones.

    At SADDLE and ZERO a column is 0, and nothing moves it but an escape.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, rank, generator=generator, dtype=torch.float64).to(problem.f0)

    if start is Start.PAPER:
        return paper_start(problem, rank, seed)
    if start is Start.LARGE:
        return {t: (3 * normal(m), 3 * normal(n)) for t, (m, n) in problem.jacobian.shapes.items()}
    if start is Start.SPECTRAL:
        return padded(spectral_start(problem, problem.zero(), rank), rank)
    if start is Start.ZERO or rank == 1:
        return padded(problem.zero(), rank)
    single = begin(problem, noise, 1, Start.LARGE, seed)
    return padded(rest(problem, single, noise), rank)


def rest(problem: Problem, factors: Factors, noise: Mapping[str, Tensor]) -> Factors:
    """Return the stationary point of F_Π that L-BFGS comes to, polished by Newton's steps on ∇F_Π = 0.

    A line search can end short of one, so L-BFGS begins again where it stopped, without its memory, until F
    falls no more. Newton's steps converge to minima and saddles alike: they never decide between them.
    """
    objective = FactoredObjective(problem, noise)
    like = problem.f0

    def evaluate(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        at = objective.evaluate(unpack(torch.from_numpy(x.copy()).to(like), factors))
        return at.value, pack(at.gradient, factors, like).cpu().numpy()

    x = pack(factors, factors, like).cpu().numpy()
    options = {"maxiter": 3000, "maxfun": 6000, "gtol": 1e-11, "ftol": 1e-15, "maxcor": 20}
    before, _ = evaluate(x)
    for _ in range(_RESTARTS):
        ended = minimize(evaluate, x, jac=True, method="L-BFGS-B", options=options)
        x, fallen, before = ended.x, before - ended.fun, ended.fun
        if fallen <= _NO_MORE * max(1.0, abs(before)):
            break
    here = Hessian(problem, unpack(torch.from_numpy(x).to(like), factors), noise)
    for _ in range(_POLISH):
        there = here.moved(-_newton_step(here))
        if not float(there.gradient.norm()) < 0.5 * float(here.gradient.norm()):
            break
        here = there
    return here.factors


def _newton_step(here: Hessian) -> Float[Tensor, " d"]:
    """Return H⁺∇F_Π, across the rotations: from the matrix where it is small, else by MINRES."""
    if len(here.gradient) <= DENSE:
        values, vectors = torch.linalg.eigh(here.dense())
        kept = values.abs() > _FLAT * values.abs().max()
        step: Tensor = vectors[:, kept] @ ((vectors[:, kept].T @ here.gradient) / values[kept])
        return step

    def multiply(x: NDArray[np.float64]) -> NDArray[np.float64]:
        d = here.without_rotations(torch.from_numpy(np.ascontiguousarray(x).reshape(-1)).to(here.gradient))
        product: NDArray[np.float64] = here.without_rotations(here.product(d)).cpu().numpy()
        return product

    size = len(here.gradient)
    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
    slope = here.without_rotations(here.gradient).cpu().numpy()
    solution, _ = minres(operator, slope, rtol=_INEXACT, maxiter=_PRODUCTS)
    return torch.from_numpy(solution).to(here.gradient)
