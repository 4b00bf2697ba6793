from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from random_problems import LOSSES, random_problem
from tangentlora.problem.objective import Problem
from tangentlora.solvers.factored import FactoredObjective, perturbation, stack


def dense_objective(
    problem: Problem, pairs: dict[str, tuple[Tensor, Tensor]], noise: dict[str, Tensor]
) -> Tensor:
    """F_Π from dense Jacobian blocks and torch's own losses, on the autograd graph."""
    z = problem.f0
    penalty = torch.zeros((), dtype=torch.float64)
    for name, (u, v) in pairs.items():
        z = z + torch.einsum("ikmn,mn->ik", problem.jacobian.dense()[name], u @ v.T)
        q = torch.cat([u, v])
        penalty = penalty + problem.lam / 2 * (u.square().sum() + v.square().sum())
        if name in noise:
            penalty = penalty + (noise[name] * (q @ q.T)).sum()
    y = problem.y
    loss = {
        "cross_entropy": lambda: torch.nn.functional.cross_entropy(z, y),
        "logistic": lambda: torch.log1p(torch.exp(-y * z[:, 0])).mean(),
        "squared": lambda: 0.5 * (z - y).square().sum(1).mean(),
    }[problem.loss.name]()
    return loss + penalty


@pytest.mark.parametrize("size", [0.0, 0.3])
@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradient_are_those_of_autograd(loss: str, size: float) -> None:
    problem = random_problem(3, loss, lam=0.07)
    factors = {
        name: (torch.randn(m, 2, dtype=torch.float64), torch.randn(n, 2, dtype=torch.float64))
        for name, (m, n) in problem.jacobian.shapes.items()
    }
    noise = perturbation(problem.jacobian.shapes, size, 5, problem.f0)
    assert bool(noise) == (size > 0)
    pairs = {
        name: (u.clone().requires_grad_(), v.clone().requires_grad_()) for name, (u, v) in factors.items()
    }
    value = dense_objective(problem, pairs, noise)
    value.backward()
    found = FactoredObjective(problem, noise).evaluate(factors)
    assert found.value == pytest.approx(float(value.detach()), rel=1e-12)
    total, u_alone = 0.0, 0.0
    for name, (u, v) in pairs.items():
        torch.testing.assert_close(found.gradient[name][0], u.grad, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.gradient[name][1], v.grad, rtol=1e-10, atol=1e-12)
        u_alone += float(u.grad.square().sum())
        total += float(u.grad.square().sum() + v.grad.square().sum())
    assert found.gradient_norm() == pytest.approx(total**0.5)
    assert found.gradient_norm(u_only=True) == pytest.approx(u_alone**0.5)


def test_the_closure_sets_scaled_gradients_and_counts_examples() -> None:
    problem = random_problem()
    factors = {
        name: (torch.randn(m, 1, dtype=torch.float64), torch.randn(n, 1, dtype=torch.float64))
        for name, (m, n) in problem.jacobian.shapes.items()
    }
    objective = FactoredObjective(problem, {})
    count: Counter[str] = Counter()
    stacked = stack(factors)
    closure = objective.closure(stacked, 1000.0, count)
    expected = objective.evaluate(factors)
    assert closure() == 1000.0 * expected.value
    closure()
    assert count["examples"] == 16
    gradient = stack(expected.gradient)
    torch.testing.assert_close(stacked.u.grad, 1000.0 * gradient.u, rtol=1e-12, atol=0)
    torch.testing.assert_close(stacked.v.grad, 1000.0 * gradient.v, rtol=1e-12, atol=0)


def test_stacked_factors_are_views_of_two_vectors() -> None:
    factors = {"a": (torch.randn(3, 2), torch.randn(4, 2)), "b": (torch.randn(5, 1), torch.randn(2, 1))}
    stacked = stack(factors)
    assert (len(stacked.u), len(stacked.v)) == (11, 10)
    torch.testing.assert_close(stacked.factors, factors, rtol=0, atol=0)
    stacked.u.zero_()
    assert not any(u.any() for u, _ in stacked.factors.values())
    stacked.read(factors)
    torch.testing.assert_close(stacked.factors, factors, rtol=0, atol=0)
    assert stacked.u.all()


def test_perturbations_are_positive_semidefinite_of_the_given_norm_and_seeded() -> None:
    shapes = {"a": (4, 3), "b": (2, 6)}
    like = torch.zeros(1, dtype=torch.float64)
    noise = perturbation(shapes, 0.02, 7, like)
    for name, (m, n) in shapes.items():
        matrix = noise[name]
        assert matrix.shape == (m + n, m + n)
        assert torch.equal(matrix, matrix.T)
        values = torch.linalg.eigvalsh(matrix)
        assert float(values[0]) >= -1e-17
        assert float(values[-1]) == pytest.approx(0.02, rel=1e-12)
    assert not torch.equal(noise["a"][:3, :3], noise["b"][:3, :3])
    assert torch.equal(noise["a"], perturbation(shapes, 0.02, 7, like)["a"])
    assert not torch.equal(noise["a"], perturbation(shapes, 0.02, 8, like)["a"])
    assert perturbation(shapes, 0.0, 7, like) == {}
