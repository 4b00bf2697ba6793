"""Local rates: the Hessian against autograd's, the roots against the recursion, predictions against runs."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from known_problems import largest_lam
from random_problems import LOSSES, random_problem
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.theory.hessian import Hessian
from tangentlora.theory.rates import (
    best_learning_rate,
    contraction,
    local_rate,
    measured_factor,
    spectrum,
)


def flat(factors: Factors) -> Tensor:
    return torch.cat([w.flatten() for pair in factors.values() for w in pair])


def shaped(vector: Tensor, like: Factors) -> Factors:
    parts = iter(torch.split(vector, [w.numel() for pair in like.values() for w in pair]))
    return {
        name: (next(parts).reshape(u.shape), next(parts).reshape(v.shape)) for name, (u, v) in like.items()
    }


def random_factors(problem: Problem, r: int, seed: int = 0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(m, r, generator=generator, dtype=torch.float64),
            torch.randn(n, r, generator=generator, dtype=torch.float64),
        )
        for name, (m, n) in problem.jacobian.shapes.items()
    }


def autograd_hessian(problem: Problem, factors: Factors) -> Tensor:
    """Return ∇²F by automatic differentiation of F written with the dense Jacobian."""
    blocks = problem.jacobian.dense()

    def objective(vector: Tensor) -> Tensor:
        pairs = shaped(vector, factors)
        z = problem.f0 + sum(torch.einsum("ikmn,mn->ik", blocks[t], u @ v.T) for t, (u, v) in pairs.items())
        return problem.loss.value(z, problem.y).mean() + 0.5 * problem.lam * vector.square().sum()

    return torch.autograd.functional.hessian(objective, flat(factors))  # type: ignore[no-untyped-call,no-any-return]


@pytest.mark.parametrize("loss", LOSSES)
def test_hessian_products_are_those_of_autograd(loss: str) -> None:
    problem = random_problem(1, loss)
    factors, direction = random_factors(problem, 2), random_factors(problem, 2, seed=1)
    H = autograd_hessian(problem, factors)
    torch.testing.assert_close(Hessian(problem, factors).product(flat(direction)), H @ flat(direction))


@pytest.mark.parametrize("h", [0.01, 0.5, 1.9, 2.5, 3.9, -0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_the_contraction_is_the_largest_root_and_that_of_the_recursion(h: float, momentum: float) -> None:
    import numpy as np

    roots = np.roots([1.0, -(1 + momentum - 0.7 * h), momentum])
    assert contraction(h, 0.7, momentum) == pytest.approx(float(np.abs(roots).max()))
    # torch's momentum on ½hx²: buffer ← β·buffer + hx, x ← x − η·buffer
    x, buffer, sizes = 1.0, 0.0, []
    for _ in range(400):
        buffer = momentum * buffer + h * x
        x -= 0.7 * buffer
        sizes.append(max(abs(x), 1e-280))
    rate = (max(sizes[-40:]) / max(sizes[160:200])) ** (1 / 200)
    if max(sizes[-40:]) > 1e-270:
        assert contraction(h, 0.7, momentum) == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_best_rate_is_best(momentum: float) -> None:
    best = best_learning_rate(0.1, 4.0, momentum)

    def worst(rate: float) -> float:
        return max(contraction(h, rate, momentum) for h in (0.1, 4.0))

    assert all(worst(best) <= worst(factor * best) + 1e-12 for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 1.5))
    assert math.isnan(best_learning_rate(-0.1, 4.0, momentum))


def padded(problem: Problem, factors: Factors, rank: int) -> Factors:
    """Return the factors with columns of zeros up to the rank."""
    return {
        name: tuple(torch.cat([w, w.new_zeros(len(w), rank - w.shape[1])], 1) for w in pair)  # type: ignore[misc]
        for name, pair in factors.items()
    }


@pytest.mark.parametrize("initialisation", ["paper", "spectral"])
@pytest.mark.parametrize(("rank", "momentum"), [(2, 0.0), (4, 0.0), (2, 0.5), (4, 0.9)])
def test_runs_converge_at_the_predicted_rate(
    initialisation: Literal["paper", "spectral"], rank: int, momentum: float
) -> None:
    problem = random_problem(0, "cross_entropy", n_examples=6, shapes=((6, 5),))
    problem = problem.with_lam(0.3 * largest_lam(problem))
    optimum = Certified(tolerance=1e-13).solve(problem)
    assert sum(optimum.ranks.values()) == 2
    point = padded(problem, optimum.factors, rank)
    bare = local_rate(problem, point, 0.1, momentum)
    predicted = local_rate(problem, point, 0.4 * bare.best_learning_rate, momentum)
    run = Descent(
        rank=rank,
        epochs=6000,
        learning_rate=0.4 * bare.best_learning_rate,
        momentum=momentum,
        tolerance=1e-30,
        initialisation=initialisation,
    ).solve(problem)
    measured = measured_factor(run.trace, optimum.objective)
    assert 0 < predicted.factor < 1
    assert math.log(measured) == pytest.approx(math.log(predicted.factor), rel=0.1)


def test_null_directions_are_the_rotations_and_the_eigenvalues_those_of_autograd() -> None:
    problem = random_problem(0, "cross_entropy", n_examples=6, shapes=((6, 5),))
    problem = problem.with_lam(0.3 * largest_lam(problem))
    factors = Certified(tolerance=1e-13).solve(problem).factors
    rate = local_rate(problem, factors, 0.1)
    assert rate.rotations == 1  # r(r−1)/2 of rank 2
    values = torch.linalg.eigvalsh(autograd_hessian(problem, factors))
    assert rate.largest == pytest.approx(float(values[-1]))
    assert rate.smallest == pytest.approx(float(values[1]))
    assert rate.factor == pytest.approx(max(abs(1 - 0.1 * rate.smallest), abs(1 - 0.1 * rate.largest)) ** 2)
    assert rate.steps_per_digit == pytest.approx(math.log(0.1) / math.log(rate.factor))


@pytest.mark.parametrize(("shapes", "rank"), [(((6, 5),), 4), (((6, 5), (4, 7)), 3), (((9, 8), (4, 7)), 3)])
def test_columns_of_zeros_split_off_and_their_spectrum_is_that_of_autograd(
    shapes: tuple[tuple[int, int], ...], rank: int
) -> None:
    problem = random_problem(0, "cross_entropy", n_examples=4, shapes=shapes)
    problem = problem.with_lam(0.4 * largest_lam(problem))
    optimum = Certified(tolerance=1e-13).solve(problem).factors
    point = padded(problem, optimum, rank)
    mixed = {}  # a rotation of the columns hides the zeros and changes nothing
    for name, (u, v) in point.items():
        R = torch.linalg.qr(torch.randn(rank, rank, dtype=torch.float64)).Q
        mixed[name] = (u @ R, v @ R)
    values = torch.linalg.eigvalsh(autograd_hessian(problem, mixed))
    rate = local_rate(problem, mixed, 0.1)
    used = [u.shape[1] for u, _ in optimum.values()]
    assert rate.rotations == sum(r * (r - 1) // 2 + r * (rank - r) for r in used)
    assert float(values[: rate.rotations].abs().max()) < 1e-6
    assert rate.smallest == pytest.approx(float(values[rate.rotations]), rel=1e-5)
    assert rate.largest == pytest.approx(float(values[-1]))
    found, _ = spectrum(problem, mixed)
    for value in values[rate.rotations :]:
        assert float((found - value).abs().min()) < 1e-6


def test_a_saddle_and_too_large_a_step_do_not_converge() -> None:
    problem = random_problem(0)
    problem = problem.with_lam(0.2 * largest_lam(problem))
    saddle = padded(problem, problem.zero(), 1)
    rate = local_rate(problem, saddle, 0.1, 0.5)
    assert rate.smallest < 0
    assert rate.factor > 1
    assert rate.steps_per_digit == math.inf
    assert math.isnan(rate.best_learning_rate)
    optimum = Certified().solve(problem).factors
    assert local_rate(problem, optimum, 1e3).factor > 1


def test_the_measured_factor_is_that_of_a_geometric_trace_and_needs_epochs() -> None:
    trace = [(epoch, 2.0 + 3.0 * 0.9**epoch) for epoch in range(300)]
    assert measured_factor(trace, 2.0) == pytest.approx(0.9)
    with pytest.raises(InputError, match="got 0 epochs at which F − F"):
        measured_factor(trace[:20], 2.0)


def test_bad_input_is_refused() -> None:
    problem = random_problem(0)
    for rate, momentum in ((0.0, 0.0), (-1.0, 0.0), (0.1, 1.0), (math.inf, 0.0)):
        with pytest.raises(InputError, match=f"got the learning rate {rate} and momentum {momentum}"):
            local_rate(problem, random_factors(problem, 1), rate, momentum)
    with pytest.raises(InputError, match="got factors of 0 coordinates"):
        local_rate(problem, problem.zero(), 0.1)
    large = random_problem(0, shapes=((90, 90),), n_examples=60)
    with pytest.raises(InputError, match="expected 1 to 4096: use a smaller rank"):
        local_rate(large, random_factors(large, 23), 0.1)
