"""A live network's base loaded anew: what users of its adapter have, and what the live one has besides."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.load import load_anew, network_from_module
from tangentlora.models.network import Network
from tangentlora.models.readouts import Readout


@final
@dataclass(frozen=True, eq=False)
class Fresh:
    """The base as its files have it, None where they cannot be had, and `note`, a sentence about that.

    `differing` are the weights that the live network holds and its files do not: trained in place, resized,
    or drawn at random since the files lack them.
    """

    network: Network | None
    differing: tuple[str, ...]
    note: str


def fresh_base(
    module: Any,
    processor: Any,
    readout: Readout,
    base_model: str | None,
    revision: str | None,
    trained: tuple[str, ...],
) -> Fresh:
    """Load the network that `module` was made from, with its settings, and say which weights differ.

    Where it cannot be loaded, those that are `trained` in place count as differing.
    """
    unchecked = "what was written was checked on the live network only, since its base cannot be loaded anew"
    if not base_model:
        return Fresh(None, trained, f"{unchecked}: the adapter does not name it.")
    dtype = next(module.parameters()).dtype
    try:
        fresh, absent = load_anew(type(module), base_model, copy.deepcopy(module.config), revision, dtype)
        network = network_from_module(fresh.to(module.device), processor, readout, name=base_model)
    except (InputError, AttributeError) as error:
        return Fresh(None, trained, f"{unchecked} ({str(error).rstrip('.')}).")
    own, files = module.state_dict(), fresh.state_dict()
    differing = tuple(name for name, t in own.items() if name in absent or not _same(files.get(name), t))
    return Fresh(network, differing, f"Checked on {base_model}, loaded anew.")


def whole_modules(module: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return copies of these weights and of all others of the modules that own them, as PEFT saves them."""
    owners = {name.rpartition(".")[0] for name in names}
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in module.state_dict().items()
        if name.rpartition(".")[0] in owners
    }


def _same(there: Tensor | None, here: Tensor) -> bool:
    return there is not None and there.shape == here.shape and torch.equal(there.to(here), here)
