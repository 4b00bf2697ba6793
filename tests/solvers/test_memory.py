"""What a certified solve is said to hold, against what it holds, and what makes it hold more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from random_jacobians import random_factors, random_jacobian
from tangentlora.problem.losses import CrossEntropy
from tangentlora.problem.objective import Problem
from tangentlora.solvers.local_model import LocalModel
from tangentlora.solvers.memory import solve_bytes
from tangentlora.tangent.plan import ProblemShape

SHAPE = ProblemShape(
    64, 3, 2, {"query": 64, "value": 256}, {"query": (32, 16), "value": (32, 16)}, {"value": 4}
)


def test_one_dense_problem_is_counted_by_hand() -> None:
    shape = ProblemShape(8, 2, 1, {"query": 8}, {"query": (6, 4)})
    d, s, columns = 4 * 10, 8, 4
    designs = 2 * s * d + 3 * s * d + 3 * s**2
    rest = s * (4 + 6) + 4 * 8 * 2 * columns + 4 * 24 + 3 * 36 + 8 * 6
    certifying = 2 * 8**2 + 2 * 8**2 + 3 * 36 + 24  # one row an example: RK' = NK'
    assert solve_bytes(shape, 2) == 8 * max(designs + rest, certifying, 8 * 6 * 2)


@pytest.mark.parametrize("more", [{"examples": 128}, {"contrasts": 3}, {"outputs": 300}])
def test_more_of_anything_takes_no_less(more: dict[str, int]) -> None:
    grown = replace(SHAPE, **more)
    assert solve_bytes(grown, 4) >= solve_bytes(SHAPE, 4)
    assert solve_bytes(SHAPE, 400) > solve_bytes(SHAPE, 200)


def test_rows_in_bands_take_a_share_of_the_columns() -> None:
    wide = replace(SHAPE, bands={})
    assert wide.tangent_bytes - SHAPE.tangent_bytes == 4 * 3 * 256 * 32 * 3 // 4
    assert solve_bytes(SHAPE, 4) < solve_bytes(wide, 4)


def test_rows_in_a_store_are_neither_copied_nor_kept_as_a_design() -> None:
    assert solve_bytes(SHAPE, 4, blocks=True) < solve_bytes(SHAPE, 4)


def test_a_solve_holds_the_designs_that_are_counted() -> None:
    jacobian = random_jacobian(0)
    factors = random_factors(jacobian)
    n, k = jacobian.n_examples, jacobian.n_outputs
    rows = {name: len(layer.x) for name, layer in jacobian.layers.items()}
    shape = ProblemShape(n, k, k, rows, jacobian.shapes)
    problem = Problem(jacobian, jacobian.zeros(), torch.zeros(n, dtype=torch.long), CrossEntropy(), 0.1)
    design = LocalModel(problem, factors).design
    rank = sum(u.shape[1] for u, _ in factors.values())
    assert design is not None
    assert solve_bytes(shape, rank) >= 2 * design.nbytes
