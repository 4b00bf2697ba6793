"""Problems on which solvers have ended badly, and how each kind is made."""

from __future__ import annotations

from dataclasses import replace

import torch

from random_problems import random_problem
from tangentlora.problem.objective import Problem
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows


def scaled_layers(problem: Problem, *scales: float) -> Problem:
    """Return the problem with the Jacobian of each layer scaled."""
    pairs = zip(problem.jacobian.layers.items(), scales, strict=True)
    return replace(problem, jacobian=Jacobian({t: replace(rows, x=rows.x * c) for (t, rows), c in pairs}))


def separate_layers(loss: str, scale: float, lam: float, seed: int = 0) -> Problem:
    """Return two layers that see different examples, the second with gradients `scale` times as large."""
    problem = random_problem(seed, loss, lam)
    n, layers = len(problem.f0), {}
    for t, (name, rows) in enumerate(problem.jacobian.layers.items()):
        seen = torch.arange(n) % 2 == t
        mine = seen[rows.example]
        x = rows.x[mine] * (scale if t else 1.0)
        layers[name] = LayerRows(x, rows.g[mine], torch.where(seen, rows.counts, 0))
    return replace(problem, jacobian=Jacobian(layers))


def common_gradients(loss: str, size: float, lam: float) -> Problem:
    """Return a problem whose outputs share gradients of this size, which cross-entropy cannot tell."""
    problem = random_problem(5, loss, lam)
    generator = torch.Generator().manual_seed(9)
    layers = {}
    for name, rows in problem.jacobian.layers.items():
        shared = torch.randn(len(rows.x), 1, rows.g.shape[2], generator=generator, dtype=torch.float64)
        layers[name] = replace(rows, g=rows.g + size * shared)
    return replace(problem, jacobian=Jacobian(layers))


def one_example(seed: int, lam: float) -> Problem:
    """Return one example of two classes and one layer 3×3."""
    return random_problem(seed, "cross_entropy", lam, n_examples=1, n_outputs=2, shapes=((3, 3),))


def repeated(loss: str, lam: float) -> Problem:
    """Return one example eight times, with the labels of eight."""
    once, index = random_problem(2, loss, lam), [0] * 8
    return Problem(once.jacobian.select(index), once.f0[index], once.y, once.loss, lam)


def hard_problems() -> dict[str, Problem]:
    """Return the table, by what is hard about each."""
    plain = random_problem(1, "cross_entropy", 0.01)
    return {
        **{f"one example, λ = {lam:g}": one_example(3, lam) for lam in (1e-15, 1e-16, 1e-18, 1e-40)},
        **{f"λ = {lam:g}": replace(plain, lam=lam) for lam in (1e-300, 1e-100, 1e-30, 1e30, 1e300)},
        **{
            f"layers apart by {c:g}": scaled_layers(replace(plain, lam=1.9e-10), 1.0, c)
            for c in (1e-12, 1e10)
        },
        **{f"{c:g}, separate": separate_layers("cross_entropy", c, 0.01) for c in (1e-8, 1e6, 1e8)},
        **{f"common gradients, {c:g}": common_gradients("cross_entropy", c, 1e-3) for c in (1e4, 1e6, 1e8)},
        "logistic, tiny λ": random_problem(0, "logistic", 1e-18),
        "squared, tiny λ": random_problem(0, "squared", 1e-100, n_examples=2),
        "no gradient": scaled_layers(replace(plain, lam=1e-200), 0.0, 0.0),
        "a layer without gradient": scaled_layers(plain, 0.0, 1.0),
        "repeated": repeated("cross_entropy", 1e-10),
        "equal labels": replace(plain, y=torch.zeros_like(plain.y), lam=1e-18),
        "gradients of 1e-100": scaled_layers(plain, 1e-100, 1e-100),
        "gradients of 1e100": scaled_layers(plain, 1e100, 1e100),
    }
