from __future__ import annotations

import math

import pytest
import torch

from tangentlora.solvers.schedule import StepSize, log_epochs


def momentum_sgd() -> torch.optim.SGD:
    w = torch.zeros(2)
    w.grad = torch.ones(2)
    optimizer = torch.optim.SGD([w], lr=0.8, momentum=0.9)
    optimizer.step()
    assert optimizer.state
    return optimizer


@pytest.mark.parametrize("epochs", [1, 2, 7, 100, 1000, 100_000])
def test_logged_epochs_start_at_0_end_at_the_last_and_thin_out(epochs: int) -> None:
    logged = sorted(log_epochs(epochs))
    assert logged[0] == 0
    assert logged[-1] == epochs
    assert len(logged) <= 31
    if epochs <= 7:
        assert logged == list(range(epochs + 1))
    else:
        ratios = [(1 + b) / (1 + a) for a, b in zip(logged[-5:], logged[-4:], strict=False)]
        assert max(ratios) / min(ratios) < 1.3


@pytest.mark.parametrize(
    ("windows", "rate"),
    [
        ([1.0, 0.9, 0.8], 0.8),
        ([1.0, 1.0, 1.0], 0.8),
        ([1.0, 1.1, 1.0], 0.4),
        ([1.0, 1.1, 1.2], 0.2),
    ],
)
def test_the_rate_is_halved_for_each_window_that_is_worse_than_the_one_before(
    windows: list[float], rate: float
) -> None:
    optimizer = momentum_sgd()
    step = StepSize(optimizer, adaptive=True)
    for mean in windows:
        for ripple in (-0.5, 0.5) * 5:  # within a window the objective may rise
            step.observe(mean + ripple)
    assert optimizer.param_groups[0]["lr"] == rate
    assert bool(optimizer.state) == (rate == 0.8)  # the momentum goes with the rate


def test_a_retreat_quarters_the_rate_and_forgets_what_was_observed() -> None:
    optimizer = momentum_sgd()
    step = StepSize(optimizer, adaptive=True)
    for _ in range(15):
        step.observe(1.0)
    step.observe(math.nan)
    assert step.retreat()
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert not optimizer.state
    for _ in range(10):
        step.observe(5.0)  # nothing to compare with
    assert optimizer.param_groups[0]["lr"] == 0.2
    for _ in range(10):
        step.observe(6.0)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_given_rate_stays() -> None:
    optimizer = momentum_sgd()
    step = StepSize(optimizer, adaptive=False)
    for epoch in range(100):
        step.observe(float(epoch))
    assert not step.retreat()
    assert optimizer.param_groups[0]["lr"] == 0.8
    assert optimizer.state
