from __future__ import annotations

import pytest
import torch

from known_problems import KNOWN, known_problem, solve_by_cvxpy
from random_jacobians import random_factors
from random_problems import random_problem
from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.problem.ranks import ranks
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.core import Pairs, settled
from tangentlora.solvers.leading_pairs import leading_pairs
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows


def pairs_at(problem: Problem, factors: Factors) -> Pairs:
    """Return all singular pairs of M_t above λ at the factors."""
    M = problem.jacobian.adjoint(problem.dual_point(problem.outputs(factors)))
    return {name: leading_pairs(M[name], v, problem.lam, 100, exact=True) for name, (_, v) in factors.items()}


def dense_core(problem: Problem, factors: Factors) -> Problem:
    """Return the problem over the cores, from the dense Jacobian and from bases by the SVD."""
    layers = {}
    for name, (u, v) in factors.items():
        if u.shape[1]:
            A = torch.linalg.svd(u, full_matrices=False).U
            B = torch.linalg.svd(v, full_matrices=False).U
            blocks = torch.einsum("ikmn,mp,nq->ikpq", problem.jacobian.dense()[name], A, B)
            n, k, p, q = blocks.shape
            x = torch.eye(q).double().repeat(n, 1)
            g = blocks.permute(0, 3, 1, 2).reshape(n * q, k, p)
            layers[name] = LayerRows(x, g, torch.full((n,), q))
    return Problem(Jacobian(layers), problem.f0, problem.y, problem.loss, problem.lam)


@pytest.mark.parametrize("name", KNOWN)
def test_it_finds_the_best_weights_in_the_span_that_an_interior_point_method_finds(name: str) -> None:
    import cvxpy

    problem = known_problem(name)
    torch.manual_seed(0)
    given = random_factors(problem.jacobian, (2, 1, 2))
    found = settled(problem, given, {}, 1e-9)
    best = solve_by_cvxpy(
        dense_core(problem, given), solver=cvxpy.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11
    )
    assert problem.objective(found) == pytest.approx(best, abs=1e-6)
    assert problem.factored_objective(found) == pytest.approx(problem.objective(found), rel=1e-12)
    for layer, (u, v) in found.items():
        for side, whole in zip((u, v), given[layer], strict=True):
            rest = side - whole @ torch.linalg.lstsq(whole, side).solution
            assert float(rest.norm()) <= 1e-9 * (1 + float(side.norm()))


@pytest.mark.parametrize("name", KNOWN)
def test_pairs_above_lam_lower_it_further_and_none_are_needed_at_the_optimum(name: str) -> None:
    problem = known_problem(name)
    zero = problem.zero()
    escaped = settled(problem, zero, pairs_at(problem, zero), 1e-9)
    assert problem.objective(escaped) < problem.objective(zero)
    assert settled(problem, zero, {}, 1e-9) is zero
    again = settled(problem, escaped, {}, 1e-9)
    assert problem.objective(again) == pytest.approx(problem.objective(escaped), rel=1e-9)


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_columns_that_the_optimum_does_not_want_are_gone_at_once(loss: str) -> None:
    problem = random_problem(2, loss, 0.1, n_examples=12, shapes=((9, 8), (7, 10)))
    best = Certified(1e-10).solve(problem).factors
    torch.manual_seed(1)
    more = {
        name: (torch.cat([u, 0.3 * a], 1), torch.cat([v, 0.3 * b], 1))
        for (name, (u, v)), (a, b) in zip(
            best.items(), random_factors(problem.jacobian, (2, 2)).values(), strict=True
        )
    }
    found = settled(problem, more, {}, 1e-9)
    assert problem.objective(found) == pytest.approx(problem.objective(best), rel=1e-9)
    assert problem.objective(more) > 1.01 * problem.objective(best)
    assert ranks(problem, found) == {name: u.shape[1] for name, (u, _) in best.items()}
    assert all(u.shape[1] == ranks(problem, found)[name] for name, (u, _) in found.items())


def test_columns_that_carry_what_was_gained_are_kept_however_small() -> None:
    # a tenth of what is gained hangs on a column far below the others: a rough solve must not drop it
    x = torch.diag(torch.tensor([1.0, 1e4])).double()
    g = torch.eye(2).double().unsqueeze(1)
    jacobian = Jacobian({"layer": LayerRows(x, g, torch.ones(2, dtype=torch.long))})
    problem = random_problem(0, "squared", n_examples=2, n_outputs=1)
    y = torch.tensor([[100.0], [100.0]]).double()
    problem = Problem(jacobian, torch.zeros(2, 1).double(), y, problem.loss, 1e-3)
    zero = problem.zero()
    found = settled(problem, zero, pairs_at(problem, zero), 0.05)
    if found["layer"][0].shape[1] < 2:  # the second pair waits for the next time
        found = settled(problem, found, pairs_at(problem, found), 0.05)
    values = found["layer"][0].square().sum(0)
    assert len(values) == 2
    assert float(values.min() / values.max()) < 0.05


def test_wide_bases_hold_all_of_a_small_side() -> None:
    problem = random_problem(3, shapes=((2, 9), (8, 3)))
    torch.manual_seed(0)
    factors = random_factors(problem.jacobian, (5, 4))
    found = settled(problem, factors, pairs_at(problem, factors), 1e-8)
    assert all(u.shape[1] <= min(len(u), len(v)) for u, v in found.values())
    assert problem.factored_objective(found) < problem.factored_objective(factors)


def test_pairs_near_lam_wait_for_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(5, "squared", 0.01, n_examples=20, n_outputs=2, shapes=((9, 9),))
    zero = problem.zero()
    sigma = pairs_at(problem, zero)["layer.0"][1]
    far = int((sigma > problem.lam + 0.2 * (sigma[0] - problem.lam)).sum())
    assert 0 < far < len(sigma)
    widths, within = [], Jacobian.within

    def recorded(jacobian: Jacobian, bases: Factors) -> Jacobian:
        widths.append({name: A.shape[1] for name, (A, _) in bases.items()})
        return within(jacobian, bases)

    monkeypatch.setattr(Jacobian, "within", recorded)
    settled(problem, zero, pairs_at(problem, zero), 1e-6)
    assert widths == [{"layer.0": far}]
