"""Descent on the real network: it ends where the gradient vanishes, and never above where it began."""

from __future__ import annotations

import pytest
import torch

from random_factors import random_factors
from small_runs import small_settings
from tangentlora.blocks import Factors
from tangentlora.problem.objective import half_squares
from tangentlora.problem.spectral import balance
from tangentlora.studies.outer_descent import descended
from tangentlora.studies.outer_network import RealNetwork
from tangentlora.studies.prepare import Prepared, prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(small_settings(tmp_path_factory.mktemp("descent"), lam=0.05, dtype="float64"))


def start(prepared: Prepared) -> Factors:
    return {name: balance(u, v) for name, (u, v) in random_factors(prepared.targets, (2, 1)).items()}


def test_the_gradient_is_that_of_the_real_objective(prepared: Prepared) -> None:
    real, factors = RealNetwork(prepared), start(prepared)
    value, gradient = real.evaluate(factors)
    assert value == pytest.approx(real.objective(factors))  # balanced
    for name in factors:
        for part in (0, 1):
            direction = torch.randn(factors[name][part].shape, generator=torch.Generator().manual_seed(part))
            direction = direction.double()

            def moved(step: float, name: str = name, part: int = part, d: torch.Tensor = direction) -> float:
                pair = list(factors[name])
                pair[part] = pair[part] + step * d
                return real.evaluate(factors | {name: (pair[0], pair[1])})[0]

            slope = (moved(1e-4) - moved(-1e-4)) / 2e-4
            assert slope == pytest.approx(float((gradient[name][part] * direction).sum()), rel=1e-4, abs=1e-6)


def test_it_ends_at_rest_below_its_start_with_the_same_shapes(prepared: Prepared) -> None:
    real, factors = RealNetwork(prepared), start(prepared)
    before = {name: (u.clone(), v.clone()) for name, (u, v) in factors.items()}
    found = descended(real.evaluate, factors, 150, real.rounding)
    value, gradient = real.evaluate(found)
    assert value < real.evaluate(factors)[0] - 0.1
    assert (2 * half_squares(gradient)) ** 0.5 < 1e-3
    for name, (u, v) in before.items():
        assert found[name][0].shape == u.shape
        assert torch.equal(factors[name][0], u)  # the start is left alone
        assert torch.equal(factors[name][1], v)


def test_where_nothing_is_lower_the_start_comes_back() -> None:
    factors = {"t": (torch.ones(3, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64))}
    calls: list[None] = []

    def rising(point: Factors) -> tuple[float, Factors]:
        calls.append(None)
        (u, v), (u0, v0) = point["t"], factors["t"]
        up = float((u - u0).norm() + (v - v0).norm())
        return 1 + up, {"t": (torch.ones_like(u), torch.ones_like(v))}  # a gradient that lies

    found = descended(rising, factors, 20, 2e-7)
    assert torch.equal(found["t"][0], factors["t"][0])
    assert torch.equal(found["t"][1], factors["t"][1])
    assert 2 <= len(calls) <= 60
    empty = {"t": (torch.ones(3, 0), torch.ones(2, 0))}
    assert descended(rising, empty, 20, 2e-7) is empty


def test_among_values_that_float32_cannot_tell_apart_the_gradient_decides() -> None:
    factors = {"t": (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))}

    def flat(point: Factors) -> tuple[float, Factors]:
        u, v = point["t"]
        return 1 - 1e-9 * float(u), {"t": (u, v)}

    found = descended(flat, factors, 10, 2e-7)
    assert abs(float(found["t"][0])) < 0.1
