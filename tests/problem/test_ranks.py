"""Ranks and truncation: a component is zero only where the outputs do not show it, in any layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from random_jacobians import random_factors
from random_problems import LOSSES, random_problem
from tangentlora.problem.objective import Problem
from tangentlora.problem.ranks import effects, ranks, truncate
from tangentlora.tangent.jacobian import Jacobian


def pair(*sigma: float) -> tuple[Tensor, Tensor]:
    """Return balanced factors of a matrix 4×4 with these singular values."""
    root = torch.zeros(4, len(sigma), dtype=torch.float64)
    root.diagonal().copy_(torch.tensor(sigma).double().sqrt())
    return root, root.clone()


def scaled(problem: Problem, scales: dict[str, float]) -> Problem:
    """Return the problem with the Jacobian of some layers scaled."""
    layers = {
        name: replace(rows, x=rows.x * scales.get(name, 1.0))
        for name, rows in problem.jacobian.layers.items()
    }
    return replace(problem, jacobian=Jacobian(layers))


@pytest.fixture
def problem() -> Problem:
    return random_problem(0, shapes=((4, 4), (4, 4), (4, 4)))


def test_what_is_small_and_does_not_show_is_zero(problem: Problem) -> None:
    factors = {"layer.0": pair(1.0, 1e-3, 1e-9), "layer.1": pair(1e-9, 1e-9), "layer.2": pair()}
    assert ranks(problem, factors) == {"layer.0": 2, "layer.1": 0, "layer.2": 0}
    assert ranks(problem, factors, tolerance=1e-11) == {"layer.0": 3, "layer.1": 2, "layer.2": 0}
    kept = truncate(problem, factors, 1e-4)
    assert {name: u.shape[1] for name, (u, _) in kept.items()} == {"layer.0": 2, "layer.1": 0, "layer.2": 0}


@pytest.mark.parametrize("scale", [1e8, 1e12])
def test_a_small_update_of_a_layer_with_large_gradients_counts(problem: Problem, scale: float) -> None:
    factors = {
        "layer.0": pair(1.0),
        "layer.1": pair(1 / scale, 0.5 / scale, 1e-9 / scale),
        "layer.2": pair(1 / scale),
    }
    skewed = scaled(problem, {"layer.1": scale})
    assert ranks(skewed, factors) == {"layer.0": 1, "layer.1": 2, "layer.2": 0}
    kept = truncate(skewed, factors, 1e-3)
    assert {name: u.shape[1] for name, (u, _) in kept.items()} == {"layer.0": 1, "layer.1": 2, "layer.2": 0}
    change = skewed.outputs(kept) - skewed.outputs(factors)
    assert float(change.abs().max()) < 1e-7


def test_what_cross_entropy_cannot_tell_does_not_count(problem: Problem) -> None:
    layers = dict(problem.jacobian.layers)
    common = layers["layer.1"].g.mean(1, keepdim=True).expand_as(layers["layer.1"].g)
    layers["layer.1"] = replace(layers["layer.1"], g=1e8 * common)  # the same for all outputs
    blind = replace(problem, jacobian=Jacobian(layers))
    factors = {"layer.0": pair(1.0), "layer.1": pair(1e-9), "layer.2": pair()}
    assert ranks(blind, factors) == {"layer.0": 1, "layer.1": 0, "layer.2": 0}
    assert float((blind.outputs(factors) - problem.outputs(factors)).abs().max()) > 1e-2
    squared = replace(blind, loss=LOSSES["squared"], y=torch.zeros_like(blind.f0))
    assert ranks(squared, factors) == {"layer.0": 1, "layer.1": 1, "layer.2": 0}


def test_the_rounding_of_a_layer_is_no_rank_however_large_its_gradients(problem: Problem) -> None:
    u, v = pair(1.0)
    again = torch.cat([u, u], 1), torch.cat([v, 3 * v], 1)  # of rank one, in two columns
    skewed = scaled(problem, {"layer.0": 1e12})
    assert ranks(skewed, {"layer.0": again}) == {"layer.0": 1}
    assert truncate(skewed, {"layer.0": again}, 1e-9)["layer.0"][0].shape[1] == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_effects_are_what_columns_do_one_at_a_time(loss: str) -> None:
    problem = random_problem(1, loss)
    torch.manual_seed(0)
    factors = random_factors(problem.jacobian, (3, 2))
    for name, found in effects(problem, factors).items():
        u, v = factors[name]
        for j, effect in enumerate(found.tolist()):
            alone = problem.outputs({name: (u[:, j : j + 1], v[:, j : j + 1])}) - problem.f0
            assert effect == pytest.approx(float(alone.square().sum(1).mean().sqrt()), rel=1e-12)
