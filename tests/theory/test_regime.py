"""Measures of the NTK regime against functions whose curvature is known, and kernel regression."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from random_problems import LOSSES, random_problem
from tangentlora.errors import InputError
from tangentlora.problem.losses import CrossEntropy, Logistic, Squared
from tangentlora.theory.regime import (
    CLOSE,
    FAR,
    Regime,
    Step,
    Verdict,
    accuracy,
    along,
    kernel_drift,
    kernel_ridge,
    ratio,
)

TAUS = (0.0, 0.25, 0.5, 1.0)
f0 = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.4]], dtype=torch.float64)
change = torch.tensor([[3.0, 4.0], [0.0, -1.0], [-2.0, 1.0]], dtype=torch.float64)
y = torch.tensor([1, 1, 0])


def bent(curvature: float) -> Callable[[float], Tensor]:
    """Return f(W+τδ) = f0 + τJδ + τ²·curvature·Jδ, whose relative error is τ·curvature."""
    return lambda tau: f0 + tau * change + curvature * tau**2 * change


@pytest.mark.parametrize("curvature", [0.0, 0.07, 1.5])
def test_the_error_of_a_quadratic_network_is_its_curvature(curvature: float) -> None:
    f = bent(curvature)
    steps = along(CrossEntropy(), y, f0, change, {tau: f(tau) for tau in reversed(TAUS)})
    assert tuple(step.tau for step in steps) == TAUS
    assert [step.error for step in steps] == pytest.approx([tau * curvature for tau in TAUS], abs=1e-12)
    for step in steps:
        z = f0 + step.tau * change
        linear = torch.nn.functional.cross_entropy(z, y)
        real = torch.nn.functional.cross_entropy(f(step.tau), y)
        assert (step.linear_loss, step.real_loss) == pytest.approx((float(linear), float(real)))
        assert step.linear_accuracy == pytest.approx(float((z.argmax(1) == y).double().mean()))
        assert step.real_accuracy == pytest.approx(float((f(step.tau).argmax(1) == y).double().mean()))


@pytest.mark.parametrize(
    ("error", "drift", "verdict"),
    [
        (0.0, 0.0, Verdict.LINEAR),
        (CLOSE, CLOSE, Verdict.LINEAR),
        (1.01 * CLOSE, 0.0, Verdict.NEARLY),
        (0.0, 1.01 * CLOSE, Verdict.NEARLY),
        (FAR, FAR, Verdict.NEARLY),
        (1.01 * FAR, 0.0, Verdict.OUTSIDE),
        (0.0, 1.01 * FAR, Verdict.OUTSIDE),
        (math.nan, 0.0, Verdict.OUTSIDE),
        (0.0, math.nan, Verdict.OUTSIDE),
        (math.inf, 0.0, Verdict.OUTSIDE),
    ],
)
def test_the_verdict_is_that_of_the_thresholds(error: float, drift: float, verdict: Verdict) -> None:
    small, step = Step(0.5, 0.0, 1.0, 1.0, None, None), Step(1.0, error, 1.0, 1.0, None, None)
    assert Regime((small, step), (), drift).verdict is verdict
    assert Regime((small,), (step, small), drift).verdict is verdict


def test_every_verdict_says_its_threshold() -> None:
    assert "at most 10%" in Verdict.LINEAR.value
    assert "at most 50%" in Verdict.NEARLY.value
    assert "exceeds 50%" in Verdict.OUTSIDE.value


@pytest.mark.parametrize("seed", range(4))
def test_the_drift_is_that_of_the_dense_kernels(seed: int) -> None:
    before, after = (random_problem(seed + shift, n_examples=5).jacobian for shift in (0, 100))

    def dense(jacobian: object) -> Tensor:
        flat = [blocks.reshape(15, -1) for blocks in jacobian.dense().values()]  # type: ignore[attr-defined]
        return sum((block @ block.T for block in flat), torch.zeros(15, 15, dtype=torch.float64))

    expected = (dense(after) - dense(before)).norm() / dense(before).norm()
    assert kernel_drift(before, after) == pytest.approx(float(expected))
    assert kernel_drift(before, before) == 0.0


def test_twice_the_gradients_are_a_drift_of_three() -> None:
    jacobian = random_problem(0).jacobian
    doubled = {name: replace(rows, x=2 * rows.x) for name, rows in jacobian.layers.items()}
    assert kernel_drift(jacobian, replace(jacobian, layers=doubled)) == pytest.approx(3.0)


def test_accuracy_of_classes_of_signs_and_of_neither() -> None:
    assert accuracy(f0, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    assert accuracy(f0[:, :1], torch.tensor([1, 1, -1])) == pytest.approx(2 / 3)
    assert accuracy(f0, f0) is None
    for loss, labels in ((Logistic(), torch.tensor([1, -1, 1])), (Squared(), f0[:, :1])):
        (step,) = along(loss, labels, f0[:, :1], change[:, :1], {1.0: f0[:, :1]})
        assert step.real_loss == pytest.approx(float(loss.value(f0[:, :1], labels).mean()))
        assert (step.real_accuracy is None) == (loss.name == "squared")


def test_ratios_with_nothing_below() -> None:
    assert ratio(0.0, 0.0) == 0.0
    assert ratio(1.0, 0.0) == math.inf
    assert ratio(1.0, 4.0) == 0.25


def dense_ridge(J: Tensor, wanted: Tensor, mu: float) -> Tensor:
    """Return argmin ½‖Jδ − wanted‖² + ½μ‖δ‖² from its normal equations in δ."""
    return torch.linalg.solve(J.T @ J + mu * torch.eye(J.shape[1]).to(J), J.T @ wanted)


def flat(problem: object) -> Tensor:
    blocks = problem.jacobian.dense().values()  # type: ignore[attr-defined]
    return torch.cat([block.flatten(0, 1).flatten(1) for block in blocks], 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_kernel_ridge_solves_the_normal_equations(loss: str) -> None:
    problem = random_problem(3, loss)
    targets = torch.randn(problem.f0.shape, dtype=torch.float64)
    delta, mu = kernel_ridge(problem, targets, shares=(0.2,))
    J = flat(problem)
    assert mu == pytest.approx(0.2 * float((J @ J.T).diagonal().mean()))
    found = torch.cat([delta[name].flatten() for name in problem.jacobian.layers])
    torch.testing.assert_close(found, dense_ridge(J, (targets - problem.f0).flatten(), mu))


def test_the_ridge_is_the_one_that_predicts_left_out_examples_best() -> None:
    problem = random_problem(5, n_examples=10, n_outputs=2)
    targets = torch.nn.functional.one_hot(problem.y, 2).double()
    shares = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    J, wanted = flat(problem), (targets - problem.f0).flatten()
    errors = []
    for share in shares:
        mu = share * float((J @ J.T).diagonal().mean())
        missed = 0.0
        for i in range(10):
            kept = [row for row in range(20) if row // 2 != i]
            delta = dense_ridge(J[kept], wanted[kept], mu)
            missed += float((J[2 * i : 2 * i + 2] @ delta - wanted[2 * i : 2 * i + 2]).square().sum())
        errors.append(missed)
    best = shares[errors.index(min(errors))]
    assert kernel_ridge(problem, targets, shares)[1] == pytest.approx(
        best * float((J @ J.T).diagonal().mean())
    )
    assert len({round(error, 6) for error in errors}) == len(errors)


def test_bad_input_is_refused() -> None:
    for real in ({}, {1.5: f0}, {-0.1: f0}):
        with pytest.raises(InputError, match=r"expected some τ from 0 to 1"):
            along(CrossEntropy(), y, f0, change, real)
    for outputs in (f0[:2], f0 * math.inf):
        with pytest.raises(InputError, match="expected finite ones of shape"):
            along(CrossEntropy(), y, f0, change, {1.0: outputs})
    problem = random_problem(0)
    with pytest.raises(InputError, match=r"got Jacobians of \(8, 3\) and \(7, 3\) examples and outputs"):
        kernel_drift(problem.jacobian, problem.jacobian.select(range(7)))
    for targets, shares in ((problem.f0[:4], (1.0,)), (problem.f0, ()), (problem.f0, (0.0,))):
        with pytest.raises(InputError, match="and positive shares: give one target per output"):
            kernel_ridge(problem, targets, shares)
    nothing = {name: replace(rows, x=0 * rows.x) for name, rows in problem.jacobian.layers.items()}
    with pytest.raises(InputError, match="got a Jacobian of zeros"):
        kernel_ridge(replace(problem, jacobian=replace(problem.jacobian, layers=nothing)), problem.f0)
