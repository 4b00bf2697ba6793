"""Random problems of a few layers and ragged rows for tests of solvers and certificates."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tangentlora.problem.losses import CrossEntropy, Logistic, Loss, Squared
from tangentlora.problem.objective import Problem
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows

LOSSES: dict[str, Loss] = {loss.name: loss for loss in (CrossEntropy(), Logistic(), Squared())}


def random_problem(
    seed: int = 0,
    loss: str = "cross_entropy",
    lam: float = 0.05,
    *,
    n_examples: int = 8,
    n_outputs: int | None = None,
    shapes: Sequence[tuple[int, int]] = ((6, 5), (4, 7)),
    device: torch.device | str = "cpu",
) -> Problem:
    """Return a problem in float64 with 1–3 rows per example and layer; K is 3, 1 for the logistic loss."""
    generator = torch.Generator().manual_seed(seed)
    k = n_outputs or (1 if loss == "logistic" else 3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layers = {}
    for t, (m, n) in enumerate(shapes):
        counts = torch.randint(1, 4, (n_examples,), generator=generator)
        rows = int(counts.sum())
        layers[f"layer.{t}"] = LayerRows(normal(rows, n), normal(rows, k, m) / m**0.5, counts)
    y = {
        "cross_entropy": lambda: torch.randint(0, k, (n_examples,), generator=generator),
        "logistic": lambda: 2 * torch.randint(0, 2, (n_examples,), generator=generator) - 1,
        "squared": lambda: normal(n_examples, k),
    }[loss]()
    jacobian = Jacobian(layers).to(torch.float64, device)
    return Problem(jacobian, normal(n_examples, k), y, LOSSES[loss], lam)
