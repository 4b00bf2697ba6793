"""Answers of far higher rank than their problem needs, and what they give by dense algebra."""

from __future__ import annotations

import torch
from torch import Tensor

from random_problems import random_problem
from tangentlora.blocks import Factors, multiply
from tangentlora.problem.objective import Problem

SHAPES = ((12, 10), (8, 14), (9, 9))


def generous(loss: str = "cross_entropy", seed: int = 0, rank: int = 7) -> tuple[Problem, Factors]:
    """Return a problem of three layers with 4 examples and an answer of far higher rank than it needs."""
    problem = random_problem(seed, loss, n_examples=4, shapes=SHAPES)
    generator = torch.Generator().manual_seed(seed)
    decay = 0.7 ** torch.arange(rank, dtype=torch.float64)
    return problem, {
        name: (
            torch.randn(m, rank, generator=generator, dtype=torch.float64) * decay,
            torch.randn(n, rank, generator=generator, dtype=torch.float64),
        )
        for name, (m, n) in problem.jacobian.shapes.items()
    }


def dense_outputs(problem: Problem, factors: Factors) -> Tensor:
    """Return the contrasted outputs from the dense Jacobian."""
    inner = problem.contrasted
    deltas = multiply(factors)
    z = inner.f0.clone()
    for name, blocks in inner.jacobian.dense().items():
        z += torch.einsum("ikmn,mn->ik", blocks, deltas[name])
    return z
