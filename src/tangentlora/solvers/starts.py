"""Where descent on the factors begins: the paper's start, the escape from δ = 0, or given factors."""

from __future__ import annotations

import math

import torch

from tangentlora.blocks import Factors, cast
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.solvers.spectral_start import spectral_start


def paper_start(problem: Problem, rank: int, seed: int, scale: float = 1.0) -> Factors:
    """Return u = 0 and v Gaussian of standard deviation scale/(√r·n), drawn layer by layer.

    Source: Jang, Lee, Ryu 2024, section 5, at scale 1.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, (m, n) in problem.jacobian.shapes.items():
        v = torch.randn(n, rank, generator=generator, dtype=torch.float64)
        v = scale * v / (math.sqrt(rank) * n)
        factors[name] = (problem.f0.new_zeros(m, rank), v.to(problem.f0.device))
    return factors


def peft_start(problem: Problem, rank: int, seed: int, scale: float = 1.0) -> Factors:
    """Return u = 0 and v uniform in ±scale/√n, of standard deviation scale/√(3n), drawn layer by layer.

    Source: PEFT's LoRA layer, kaiming_uniform with a = √5, at scale 1.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, (m, n) in problem.jacobian.shapes.items():
        v = torch.rand(n, rank, generator=generator, dtype=torch.float64)
        v = (2 * v - 1) * (scale / math.sqrt(n))
        factors[name] = (problem.f0.new_zeros(m, rank), v.to(problem.f0.device))
    return factors


def escaping_start(problem: Problem, drawn: Factors, rank: int) -> Factors:
    """Return up to r columns that escape from δ = 0 per layer, filled up by the drawn ones."""
    inner, span = problem.reduced
    pairs = span.lift(spectral_start(inner, inner.zero(), rank))
    return _filled(pairs, drawn, rank)


def given_start(problem: Problem, given: Factors, drawn: Factors, rank: int) -> Factors:
    """Return the given columns as they are, filled up by the drawn ones.

    Raises InputError where they are more than `rank`, or do not fit the problem.
    """
    problem.require_factors(given, "start from an answer to a problem with these layers")
    columns = max((u.shape[1] for u, _ in given.values()), default=0)
    if columns > rank:
        raise InputError(
            f"got a start of rank {columns} for LoRA of rank {rank}, expected at most that: raise --rank, or "
            "make the start smaller with tangentlora compress"
        )
    own = cast(given, problem.f0)
    return _filled(problem.zero() | own, drawn, rank)


def _filled(first: Factors, rest: Factors, rank: int) -> Factors:
    """Return the columns of `first`, then those of `rest`, `rank` in all."""
    return {
        name: (torch.cat([first[name][0], u], 1)[:, :rank], torch.cat([first[name][1], v], 1)[:, :rank])
        for name, (u, v) in rest.items()
    }
