"""Theorem 3 on a prepared task: both bounds on an answer, beside its loss on the held-out set."""

from __future__ import annotations

import torch

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.studies.prepare import Prepared
from tangentlora.theory.bounds import Generalisation, generalisation


def bounds(
    prepared: Prepared, factors: Factors, *, lam: float | None = None, eta: float = 0.05, draws: int = 200
) -> Generalisation:
    """Return what Theorem 3 and the measured bound say of an answer; the test set is the held-out one.

    Raises InputError as `theory.bounds.generalisation` does.
    """
    problem = prepared.problem if lam is None else prepared.problem.with_lam(lam)
    return generalisation(
        problem, factors, held_out(prepared), eta=eta, draws=draws, seed=prepared.settings.seed
    )


def held_out(prepared: Prepared) -> Problem | None:
    """Return the problem of the test set, or None where there is none."""
    tangent, examples, problem = prepared.test, prepared.splits.test, prepared.problem
    if tangent is None or examples is None:
        return None
    device = problem.f0.device
    jacobian = tangent.jacobian.to(torch.float64, device)
    return Problem(jacobian, tangent.f0, torch.tensor(examples.labels), problem.loss, problem.lam)
