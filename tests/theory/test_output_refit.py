"""The least change of factors that restores the outputs, against dense least squares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generous_answers import dense_outputs, generous
from tangentlora.blocks import Factors, multiply, pack
from tangentlora.problem.objective import Problem
from tangentlora.problem.ranks import ranks
from tangentlora.theory.output_reduction import Directions
from tangentlora.theory.output_refit import Refit, restore

LOSSES = ("cross_entropy", "logistic", "squared")


def dense_design(problem: Problem, factors: Factors) -> Tensor:
    """Return B, (NK',d), column by column from the dense Jacobian."""
    inner, columns = problem.contrasted, []
    base = dense_outputs(problem, factors)
    for name, pair in factors.items():
        for side in (0, 1):
            for entry in range(pair[side].numel()):
                unit = torch.zeros(pair[side].numel(), dtype=torch.float64)
                unit[entry] = 1.0
                other = [pair[0], pair[1]]
                other[side] = pair[side] + unit.reshape(pair[side].shape)
                moved = dense_outputs(problem, factors | {name: (other[0], other[1])})
                columns.append((moved - base).flatten())  # exact: the outputs are linear in each side
    assert inner.f0.shape == base.shape
    return torch.stack(columns, 1)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_a_correction_is_the_damped_least_squares_solution(damping):
    problem, factors = generous(rank=2)
    refit = Refit(problem.contrasted.jacobian, factors)
    error = torch.randn(problem.contrasted.f0.shape, dtype=torch.float64)
    moved = refit.moved(error, damping)
    names = list(factors)
    step = pack(moved, names, error) - pack(refit.factors, names, error)
    B = dense_design(problem, refit.factors)
    mu = damping * torch.linalg.matrix_norm(B, 2) ** 2
    if damping:
        expected = torch.linalg.solve(B.T @ B + mu * torch.eye(B.shape[1]), B.T @ error.flatten())
    else:
        expected = torch.linalg.pinv(B) @ error.flatten()
    torch.testing.assert_close(step, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_rank_one_in_every_layer_can_give_all_outputs(loss):
    problem, factors = generous(loss)
    inner, directions = problem.contrasted, Directions.of(factors)
    kept = directions.keep(directions.order_by_outputs(problem, 1)[-3:])
    wanted = dense_outputs(problem, factors)
    found = restore(
        kept,
        lambda there: wanted - inner.outputs(there),
        lambda there: inner.jacobian,
        enough=1e-11,
        steps=50,
    )
    assert set(ranks(problem, found).values()) == {1}
    assert float((dense_outputs(problem, kept) - wanted).norm()) > 0.1
    torch.testing.assert_close(dense_outputs(problem, found), wanted, rtol=0, atol=1e-9)


def test_outputs_beyond_reach_are_left_and_no_step_makes_them_worse():
    problem, factors = generous()
    inner = problem.contrasted
    nothing = {name: (u[:, :0], v[:, :0]) for name, (u, v) in factors.items()}
    one = nothing | {"layer.0": (factors["layer.0"][0][:, :1], factors["layer.0"][1][:, :1])}
    jacobian = inner.jacobian
    wanted = 100 * torch.randn(inner.f0.shape, dtype=torch.float64)
    for start in (nothing, one):
        seen = []

        def error(there, seen=seen):
            e = wanted - inner.outputs(there)
            seen.append(float(e.norm()))
            return e

        found = restore(start, error, lambda there: jacobian, enough=0.0, steps=5)
        assert float((wanted - inner.outputs(found)).norm()) <= seen[0] * (1 + 1e-12)
        assert {name: u.shape[1] for name, (u, _) in found.items()} == {
            name: u.shape[1] for name, (u, _) in start.items()
        }


def test_nothing_moves_where_nothing_is_lacking():
    problem, factors = generous()
    inner = problem.contrasted

    def forbidden(there):
        raise AssertionError("no Jacobian is needed")

    found = restore(factors, lambda there: torch.zeros_like(inner.f0), forbidden, enough=0.0, steps=5)
    for name, delta in multiply(factors).items():
        torch.testing.assert_close(multiply(found)[name], delta, rtol=0, atol=1e-12)


def test_a_step_that_overshoots_is_damped():
    problem, factors = generous(rank=2)
    inner = problem.contrasted
    wanted = dense_outputs(problem, factors) + torch.randn(inner.f0.shape, dtype=torch.float64)
    start = inner.outputs(factors)

    def error(there):  # the outputs move three times as far as the Jacobian says: full steps end beyond
        return wanted - (start + 3 * (inner.outputs(there) - start))

    refit = Refit(inner.jacobian, factors)
    assert float(error(refit.moved(error(factors))).norm()) > float(error(factors).norm())
    found = restore(factors, error, lambda there: inner.jacobian, enough=0.0, steps=50)
    assert float(error(found).norm()) < 0.2 * float(error(factors).norm())
