"""A network that takes padding for text is refused, by the gradient and by the Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fake_network import fake_network
from tangentlora.errors import InputError
from tangentlora.problem.losses import CrossEntropy
from tangentlora.tangent.gradient import weight_gradients
from tangentlora.tangent.linearize import linearize
from tiny_networks import NETWORKS


def passes(kind: str, read: Callable[[Mapping[str, Tensor]], Tensor], module: Any, batch_size: int) -> Any:
    network = fake_network(module, read)
    examples = NETWORKS["bert"]()[1]
    inputs = [
        {name: tensor[i][: int(examples["attention_mask"][i].sum())] for name, tensor in examples.items()}
        for i in range(3)
    ]
    targets = network.targets(["value"], "last")
    if kind == "gradient":
        y = torch.tensor([0, 1, 2])
        return weight_gradients(network, inputs, y, targets, CrossEntropy(), batch_size=batch_size)
    return linearize(network, inputs, targets, batch_size=batch_size)


@pytest.mark.parametrize("kind", ["gradient", "jacobian"])
def test_padding_that_is_read_as_text_is_refused(kind: str) -> None:
    module, _, read = NETWORKS["bert"]()

    def without_mask(tensors: Mapping[str, Tensor]) -> Tensor:
        return read({"input_ids": tensors["input_ids"]})

    with pytest.raises(InputError, match="with and without padding, expected a network that leaves it out"):
        passes(kind, without_mask, module, 3)
    passes(kind, without_mask, module, 1)
    passes(kind, read, module, 3)
