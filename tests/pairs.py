"""A network of two linear layers, and ways to use them that are awkward on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fake_network import fake_network
from tangentlora.models.network import Network
from tangentlora.models.targets import Target

B, L, D, K = 4, 3, 6, 2


class Pair(nn.Module):
    """Two linear layers of equal size; each forward below uses them in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, K)
        self.table = nn.Parameter(torch.randn(5, D))


TARGETS = (Target("a", "a", (D, D)), Target("b", "b", (D, D)))
Forward = Callable[[Pair, Tensor], Tensor]


def network_of(forward: Forward, k: int = K) -> Network:
    """Return a float64 network that reads `forward(pair, x)`, (B,L,D), by k outputs at the last token."""
    pair = Pair().double()

    def read(tensors: Mapping[str, Tensor]) -> Tensor:
        outputs: Tensor = pair.head(forward(pair, tensors["x"])[:, -1])
        return outputs[:, :k]

    return fake_network(pair, read)


def inputs(batch: int = B) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, L, D, dtype=torch.float64)}


def mix(x: Tensor) -> Tensor:
    """Mix the tokens of each example, so that every token reaches the last one."""
    return torch.tanh(x) + x.mean(dim=1, keepdim=True)


def on_a_table(pair: Pair, x: Tensor) -> Tensor:
    return mix(pair.b(x) * pair.a(pair.table).mean(dim=0))


def never_called(pair: Pair, x: Tensor) -> Tensor:
    return mix(pair.a(x))


def not_on_the_way(pair: Pair, x: Tensor) -> Tensor:
    pair.a(x), pair.b(x)
    return mix(x)


def infinite(pair: Pair, x: Tensor) -> Tensor:
    return pair.b(pair.a(x)) / torch.zeros(())


def of_infinite_slope(pair: Pair, x: Tensor) -> Tensor:
    return (pair.b(x) - pair.b(x)).abs().sqrt() + pair.a(x)
