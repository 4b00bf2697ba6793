"""Random Jacobians of ragged shapes for tests: some examples have many rows, some none."""

from __future__ import annotations

import torch

from tangentlora.blocks import Factors
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows


def random_jacobian(
    seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
) -> Jacobian:
    """Return 1–5 examples, 1–4 outputs and 1–3 layers of sides 1–7, with 0–4 rows per example and layer."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    n_examples, n_outputs = between(1, 5), between(1, 4)
    layers = {}
    for t in range(between(1, 3)):
        counts = torch.randint(0, 5, (n_examples,), generator=generator)
        rows, m, n = int(counts.sum()), between(1, 7), between(1, 7)
        x = torch.randn(rows, n, generator=generator, dtype=torch.float64)
        g = torch.randn(rows, n_outputs, m, generator=generator, dtype=torch.float64)
        layers[f"layer.{t}"] = LayerRows(x, g, counts)
    return Jacobian(layers).to(dtype, device)


def random_factors(jacobian: Jacobian, ranks: tuple[int, ...] = (2, 0, 3)) -> Factors:
    """Return factors of the given ranks, layer by layer."""
    like = jacobian.zeros()
    return {
        name: (torch.randn(m, r).to(like), torch.randn(n, r).to(like))
        for (name, (m, n)), r in zip(jacobian.shapes.items(), ranks, strict=False)
    }
