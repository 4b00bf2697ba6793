"""The published loop that our epochs are timed against takes the steps that ours imitates."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fake_network import examples_of, fake_network, jacrev_blocks, relative_error
from tangentlora.blocks import Factors
from tangentlora.models.network import Network
from tangentlora.problem.losses import CrossEntropy
from tangentlora.problem.objective import Problem, half_squares
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.solution import Solution
from tangentlora.solvers.starts import paper_start
from tangentlora.tangent.linearize import linearize
from tangentlora.tangent.tangent import Tangent
from tiny_networks import NETWORKS

Made = tuple[Network, dict[str, Tensor], Tangent, Problem]
RANK, RATE, STEPS, LAM, Y = 2, 0.05, 8, 0.01, torch.tensor([0, 2, 1])


def published_loop() -> Any:
    """Import the benchmark's module from its file."""
    path = Path(__file__).parents[1] / "benchmarks" / "published_loop.py"
    spec = importlib.util.spec_from_file_location("published_loop", path)
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module.PublishedLoop


@pytest.fixture(scope="module")
def made() -> Made:
    module, tensors, read = NETWORKS["roberta-mlm"]()
    network = fake_network(module, read)
    tangent = linearize(network, examples_of(tensors))
    return network, tensors, tangent, Problem(tangent.jacobian, tangent.f0, Y, CrossEntropy(), LAM)


@pytest.fixture(scope="module")
def theirs(made: Made) -> tuple[Factors, list[float]]:
    """What the published loop logs and ends at, with Jacobians by jacrev and the network's own passes."""
    network, tensors, tangent, problem = made
    dense = jacrev_blocks(network, tensors, tangent.targets)
    loop = published_loop()(lambda: network.reader.outputs(tensors), dense, Y, LAM)
    factors, logged = loop.train(paper_start(problem, RANK, seed=0), RATE, STEPS)
    return factors, logged


def ours(problem: Problem, **changed: Any) -> Solution:
    """Imitate it: the mean over N examples takes N times the rate for their sum, and λ does not act."""
    settings = {"learning_rate": len(Y) * RATE, "momentum": 0.0, "published": True} | changed
    return Descent(rank=RANK, epochs=STEPS, tolerance=-1.0, **settings).solve(problem)


def distance(found: Factors, expected: Factors) -> float:
    return max(
        relative_error(mine, other.to(mine))
        for name, pair in found.items()
        for mine, other in zip(pair, expected[name], strict=True)
    )


def test_both_loops_take_the_same_steps(made: Made, theirs: tuple[Factors, list[float]]) -> None:
    *_, problem = made
    factors, logged = theirs
    solution = ours(problem)
    assert logged[-1] < 0.9 * logged[0], "the steps are too small to tell anything"
    assert distance(solution.factors, factors) < 1e-5
    # it logs the loss before each step with the penalty after it
    losses = [value for _, value in ours(problem.with_lam(0.0)).trace[:STEPS]]
    assert losses[0] == pytest.approx(problem.empirical_loss(problem.f0), rel=1e-6)
    assert logged[-1] == pytest.approx(losses[-1] + LAM * half_squares(solution.factors), rel=1e-5)


@pytest.mark.parametrize("changed", [{"learning_rate": RATE}, {"published": False}, {"momentum": 0.5}])
def test_other_reductions_and_a_penalty_that_acts_take_others(
    changed: dict[str, Any], made: Made, theirs: tuple[Factors, list[float]]
) -> None:
    *_, problem = made
    assert distance(ours(problem, **changed).factors, theirs[0]) > 1e-4
