"""A certified solve's problem: the tangent of RoBERTa-base with the labels of a planted teacher.

The teacher is a random update of rank 2 in every layer, the labels say on which side of their median its
outputs lie (a network with random weights gives all prompts nearly the same outputs, so that nearly all have
one sign), and a tenth of them is flipped. `narrowed` is the same problem projected to smaller matrices.
"""

from __future__ import annotations

from pathlib import Path

import torch
from linearize_roberta import build

from tangentlora import CrossEntropy, Problem, linearize
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.operator import Operator
from tangentlora.tangent.tangent import Tangent

SEED, RANK, FLIPPED = 0, 2, 0.1


def tangent(threads: int) -> Tangent:
    """Return the tangent of query and value of the last layer on 32 prompts, K = 2."""
    network, inputs = build(threads)
    return linearize(network, inputs)


def planted(jacobian: Operator, f0: torch.Tensor, lam: float) -> Problem:
    """Return the problem whose labels a random teacher of low rank gives, a tenth of them flipped."""
    generator = torch.Generator().manual_seed(SEED)
    teacher = {
        name: (torch.randn(m, RANK, generator=generator), torch.randn(n, RANK, generator=generator))
        for name, (m, n) in jacobian.shapes.items()
    }
    z = jacobian.to(torch.float32).at(teacher).forward()
    difference = z[:, 1] - z[:, 0]
    y = (difference > difference.median()).long()
    flipped = torch.randperm(len(y), generator=generator)[: round(FLIPPED * len(y))]
    y[flipped] = 1 - y[flipped]
    return Problem(jacobian, f0, y, CrossEntropy(), lam)


def largest_lam(problem: Problem) -> float:
    """Return max_t ‖∇_t L̂(0)‖₂, the smallest λ at which δ = 0 is optimal."""
    gradient = problem.jacobian.adjoint(problem.dual_point(problem.f0))
    return max(float(torch.linalg.matrix_norm(M, 2)) for M in gradient.values())


def narrowed(jacobian: Jacobian, side: int) -> Jacobian:
    """Return the Jacobian in side × side coordinates of each δ_t, in random orthonormal bases."""
    generator = torch.Generator().manual_seed(SEED)
    layers = {}
    for name, (m, n) in jacobian.shapes.items():
        columns, rows = (
            torch.linalg.qr(torch.randn(size, side, generator=generator, dtype=torch.float64)).Q
            for size in (m, n)
        )
        layer = jacobian.layers[name]
        layers[name] = LayerRows(layer.x.double() @ rows, layer.g.double() @ columns, layer.counts)
    return Jacobian(layers)


def write(problem: Problem, path: Path) -> None:
    """Write the problem without its λ, for another process to read."""
    from safetensors.torch import save_file

    tensors = {"f0": problem.f0, "y": problem.y}
    for t, (_, layer) in enumerate(sorted(problem.jacobian.layers.items())):
        tensors |= {f"{t}.x": layer.x, f"{t}.g": layer.g, f"{t}.counts": layer.counts}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def read(path: Path, lam: float) -> Problem:
    """Read a problem that `write` wrote; its layers are named by their numbers."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    layers = {
        name[:-2]: LayerRows(tensors[name], tensors[f"{name[:-2]}.g"], tensors[f"{name[:-2]}.counts"])
        for name in sorted(tensors)
        if name.endswith(".x")
    }
    return Problem(Jacobian(layers), tensors["f0"], tensors["y"], CrossEntropy(), lam)
