from __future__ import annotations

import pytest
import torch

from random_problems import LOSSES, random_problem
from tangentlora.problem.losses import Squared
from tangentlora.problem.objective import Problem
from tangentlora.solvers.spectral_start import spectral_start
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_the_start_lowers_f_by_balanced_columns_along_the_leading_pairs(loss: str, seed: int) -> None:
    problem = random_problem(seed, loss)
    zero = problem.zero()
    M = problem.jacobian.adjoint(problem.dual_point(problem.f0))
    start = spectral_start(problem, zero, 2)
    assert problem.factored_objective(start) < problem.factored_objective(zero)
    assert problem.factored_objective(start) == pytest.approx(problem.objective(start), rel=1e-12)
    for name, (u, v) in start.items():
        above = int((torch.linalg.svdvals(M[name]) > problem.lam).sum())
        assert u.shape[1] == v.shape[1] == min(2, above)
        torch.testing.assert_close(u.T @ u, v.T @ v)
        # −(Mv) is along u: the columns are singular pairs of −M
        torch.testing.assert_close(-M[name] @ v, u * torch.linalg.svdvals(M[name])[: u.shape[1]])


def test_at_a_point_it_appends_columns_and_keeps_the_others() -> None:
    problem = random_problem(1)
    factors = {
        name: (0.1 * torch.randn(m, 1, dtype=torch.float64), 0.1 * torch.randn(n, 1, dtype=torch.float64))
        for name, (m, n) in problem.jacobian.shapes.items()
    }
    escaped = spectral_start(problem, factors, 3)
    assert problem.factored_objective(escaped) < problem.factored_objective(factors)
    for name, (u, v) in factors.items():
        assert torch.equal(escaped[name][0][:, :1], u)
        assert torch.equal(escaped[name][1][:, :1], v)


def test_the_step_is_near_the_best_along_its_line() -> None:
    problem = random_problem(2, "squared")
    start = spectral_start(problem, problem.zero(), 3)
    best = min(
        problem.factored_objective({name: (s * u, s * v) for name, (u, v) in start.items()})
        for s in torch.linspace(0, 3, 300).tolist()
    )
    base = problem.factored_objective(problem.zero())
    assert base - problem.factored_objective(start) > 0.7 * (base - best)


def test_a_feasible_gradient_appends_nothing() -> None:
    problem = random_problem(lam=100.0)
    zero = problem.zero()
    assert spectral_start(problem, zero, 4) is zero


def test_one_infeasible_layer_leaves_the_others_alone() -> None:
    problem = random_problem(0)
    norms = {
        name: float(torch.linalg.matrix_norm(M, 2))
        for name, M in problem.jacobian.adjoint(problem.dual_point(problem.f0)).items()
    }
    low, high = sorted(norms, key=norms.__getitem__)
    between = Problem(problem.jacobian, problem.f0, problem.y, problem.loss, sum(norms.values()) / 2)
    start = spectral_start(between, between.zero(), 4)
    assert start[low][0].shape[1] == 0
    assert start[high][0].shape[1] >= 1


def test_where_rounding_hides_the_fall_nothing_is_appended() -> None:
    rows = LayerRows(torch.tensor([[1.0]]), torch.tensor([[[1.0]]]), torch.tensor([1]))
    # M = −1 and λ just below 1: F falls by less than 1e-30, while F itself is of size 1e6
    y = torch.tensor([[1.0, 2e3]])
    jacobian = Jacobian({"layer": LayerRows(rows.x, torch.tensor([[[1.0], [0.0]]]), rows.counts)})
    problem = Problem(jacobian, torch.zeros(1, 2), y, Squared(), 1 - 1e-15)
    zero = problem.zero()
    assert spectral_start(problem, zero, 1) is zero


def test_without_a_penalty_the_step_is_bounded() -> None:
    # the loss of separable data falls for ever along the direction
    rows = LayerRows(torch.eye(2), torch.tensor([[[1.0], [-1.0]], [[-1.0], [1.0]]]), torch.tensor([1, 1]))
    problem = random_problem()
    separable = Problem(Jacobian({"layer": rows}), torch.zeros(2, 2), torch.tensor([0, 1]), problem.loss, 0.0)
    start = spectral_start(separable, separable.zero(), 1)
    assert float(start["layer"][0].norm()) < 10
    assert separable.factored_objective(start) < 0.2
