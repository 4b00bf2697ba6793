"""A float32 network that computes in float64 for a while, with all that its reader keeps of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tangentlora.models.network import Network


@contextmanager
def in_double(network: Network) -> Iterator[Network]:
    """Inside the block a float32 network computes in float64, so that what differs is not its rounding.

    Gives the network to use there: what a reader computed from the weights and keeps, such as label
    prototypes or the label words' rows of a head, is in float64 too. Every parameter and buffer has its own
    type back afterwards, bit for bit, since float64 holds every float32 and bfloat16. A network whose first
    parameter is not float32 is given as it is.
    """
    if next(network.module.parameters()).dtype != torch.float32:
        yield network
        return
    modules = [network.module, *modules_of(network.reader)]
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    before = [(tensor, tensor.dtype) for tensor in tensors.values() if tensor.is_floating_point()]
    try:
        for tensor, _ in before:
            tensor.data = tensor.data.double()
        yield replace(network, reader=_doubled(network.reader))
    finally:
        for tensor, dtype in before:
            tensor.data = tensor.data.to(dtype)


def modules_of(kept: Any) -> Iterator[nn.Module]:
    """Yield the modules that a reader keeps, also inside of what it is made of."""
    if isinstance(kept, nn.Module):
        yield kept
    elif is_dataclass(kept):
        for field in fields(kept):
            yield from modules_of(getattr(kept, field.name))


def _doubled(kept: Any) -> Any:
    """Return a reader with its own tensors in float64; modules stand for themselves."""
    if isinstance(kept, Tensor):
        return kept.double() if kept.is_floating_point() else kept
    if isinstance(kept, type | nn.Module) or not is_dataclass(kept):
        return kept
    parts = {field.name: _doubled(getattr(kept, field.name)) for field in fields(kept) if field.init}
    return replace(kept, **parts)  # type: ignore[type-var]
