"""Factors for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.models.targets import Target


def random_factors(targets: Sequence[Target], ranks: Sequence[int]) -> Factors:
    """Return float64 factors of these ranks, one per target, whose entries float32 holds exactly."""
    generator = torch.Generator().manual_seed(0)

    def draw(size: int, r: int) -> Tensor:
        return (0.3 * torch.randn(size, r, generator=generator)).double()

    return {
        target.name: (draw(target.shape[0], r), draw(target.shape[1], r))
        for target, r in zip(targets, ranks, strict=True)
    }
