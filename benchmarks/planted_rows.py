"""Rows of a Jacobian like those of prompts, and labels of a planted teacher, for any N, K and T.

A layer of one head stands for a query matrix and one of twelve for a value matrix (768×768): an example has a
row for each head, whose output-gradient is zero outside the columns of its head. Inputs and gradients have
decaying spectra, and heads decay too. The teacher is a random update of rank 2 in every layer; the label is
the largest of its centred outputs, and a tenth are drawn again at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tangentlora import CrossEntropy, Problem
from tangentlora.tangent.band_products import BandedRows, find_bands
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.operator import Operator

SIDE, TEACHER, DRAWN_AGAIN, CHUNK = 768, 2, 0.1, 64


def pieces(
    examples: int, outputs: int, heads: Mapping[str, int], seed: int, side: int = SIDE
) -> Iterator[dict[str, LayerRows]]:
    """Yield the rows of some examples after the other, in float32; few of them are in memory at a time."""
    generator = torch.Generator().manual_seed(seed)
    decay = torch.arange(1, side + 1).pow(-0.5)
    turns = {name: torch.linalg.qr(torch.randn(side, side, generator=generator)).Q for name in heads}
    for start in range(0, examples, CHUNK):
        count = min(CHUNK, examples - start)
        layers = {}
        for name, number in heads.items():
            width = side // number
            x = torch.randn(count * number, side, generator=generator) * decay @ turns[name]
            bands = torch.randn(count, number, outputs, width, generator=generator) * decay[:width]
            g = torch.zeros(count, number, outputs, number, width)
            for h in range(number):
                g[:, h, :, h] = bands[:, h] * (number * (h + 1)) ** -0.5
            counts = torch.full((count,), number)
            layers[name] = LayerRows(x, g.reshape(-1, outputs, side), counts)
        yield layers


def in_memory(examples: int, outputs: int, heads: Mapping[str, int], seed: int, side: int = SIDE) -> Jacobian:
    """Return the Jacobian of all examples, in bands as a store has it; nothing is held twice."""
    whole: dict[str, LayerRows | BandedRows] = {}
    for name, number in heads.items():
        x, counts = torch.empty(examples * number, side), torch.full((examples,), number)
        bands = torch.empty(number, examples, 1, outputs, side // number)
        banded = BandedRows(x, bands, counts)
        whole[name] = banded if number > 1 else LayerRows(x, bands.reshape(-1, outputs, side), counts)
    start = 0
    for layers in pieces(examples, outputs, heads, seed, side):
        stop = start + len(next(iter(layers.values())).counts)
        for name, rows in layers.items():
            part, into = find_bands(rows) or rows, whole[name].run(start, stop)
            into.x.copy_(part.x)
            into.held.copy_(part.held)
        start = stop
    return Jacobian(whole)


def outputs_at_zero(examples: int, outputs: int, seed: int) -> Tensor:
    """Return f0, (N,K), small beside what the teacher adds."""
    return 0.1 * torch.randn(examples, outputs, generator=torch.Generator().manual_seed(seed + 1))


def labels(jacobian: Operator, seed: int) -> Tensor:
    """Return the labels of a random teacher of rank 2, a tenth of them drawn again."""
    generator = torch.Generator().manual_seed(seed + 2)
    teacher = {
        name: (torch.randn(m, TEACHER, generator=generator), torch.randn(n, TEACHER, generator=generator))
        for name, (m, n) in jacobian.shapes.items()
    }
    z = jacobian.at(teacher).forward()
    y = (z - z.mean(0)).argmax(1)
    again = torch.rand(len(y), generator=generator) < DRAWN_AGAIN
    y[again] = torch.randint(0, z.shape[1], (int(again.sum()),), generator=generator)
    return y


def posed(jacobian: Operator, f0: Tensor, y: Tensor, share: float) -> Problem:
    """Return the problem with λ = share·max_t ‖M_t(0)‖₂, the least λ at which δ = 0 is optimal."""
    problem = Problem(jacobian, f0, y, CrossEntropy(), 1.0)
    gradient = problem.jacobian.adjoint(problem.dual_point(problem.f0))
    largest = max(float(torch.linalg.matrix_norm(M, 2)) for M in gradient.values())
    return problem.with_lam(share * largest)
