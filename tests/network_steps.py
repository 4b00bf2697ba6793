"""What each of several processes does in the tests of a network's passes; the processes import it by name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fake_network import fake_network
from tangentlora import processes
from tangentlora.errors import InputError
from tangentlora.models.network import Features, Network
from tangentlora.tangent.linearize import linearize


def tiny(mixing: float = 0.0) -> Network:
    """Return a network of one layer whose outputs have so much of the others' in their batch."""
    torch.manual_seed(0)
    module = nn.ModuleDict({"query": nn.Linear(4, 3, bias=False)})

    def read(tensors: dict[str, Tensor]) -> Tensor:
        outputs: Tensor = module["query"](tensors["x"]).tanh().sum(1)
        return outputs + mixing * outputs.mean(0)

    return fake_network(module, read)  # type: ignore[arg-type]


def examples(n: int) -> list[Features]:
    """Return examples of different lengths."""
    draw = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(1 + i % 3, 4, generator=draw)} for i in range(n)]


def predicted(n: int) -> tuple[Tensor, int]:
    """Return the outputs of n examples in batches of two, and how many passes this process made for them."""
    network, passes = tiny(), []
    network.module["query"].register_forward_hook(lambda *_: passes.append(1))  # type: ignore[operator,index]
    return network.predict(examples(n), 2), len(passes)


def linearised(n: int, store: Path, mixing: float) -> tuple[str, int]:
    """Return what is said against linearising n examples in batches of two, and the passes made for it."""
    network, passes = tiny(mixing), []
    network.module["query"].register_forward_hook(lambda *_: passes.append(1))  # type: ignore[operator,index]
    try:
        linearize(network, examples(n), network.targets(("query",)), batch_size=2, store=store)
    except (InputError, processes.GroupError) as error:
        return str(error), len(passes)
    return "", len(passes)
