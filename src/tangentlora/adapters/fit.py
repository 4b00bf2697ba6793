"""An adapter on a network: its layers as targets by the network's own names, and the base it stands on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import nn

from tangentlora.adapters.adapter import Adapter
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.models.load import fingerprint
from tangentlora.models.names import current_names
from tangentlora.models.network import Network
from tangentlora.models.prompt import PromptReader
from tangentlora.models.prototypes import PrototypeReader
from tangentlora.models.targets import Target, find_targets

_EXPERT = re.compile(r"experts\.\d+\.")


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """An adapter whose names are a network's own, with one target, a whole weight, per layer."""

    targets: tuple[Target, ...]
    adapter: Adapter

    @property
    def factors(self) -> Factors:
        """u_t = √s_t·B_t (m,r) and v_t = √s_t·A_tᵀ (n,r) by the name of the target, in the targets' order."""
        return {target.name: self.adapter.layers[target.name].factors() for target in self.targets}


def fitted(adapter: Adapter, module: nn.Module) -> Fitted:
    """Match an adapter to a network: every layer a Linear or Conv1D, every saved weight one of its own.

    Names from files of earlier releases of transformers, such as those of ViT, are translated. A fused
    weight, as in GPT-2, is one target, since PEFT adapts it as one matrix. A layer on a tied `lm_head` is
    beside that module and none of the embedding, as in PEFT. The network is left as it is: `attached` adds
    the layers and `with_saved` the saved weights. A saved weight of an adapted layer that is the network's
    own, as PEFT saves with an adapted `lm_head`, is none of the adapter's and left out.

    Raises `InputError` when the network lacks a module or a parameter, a shape differs, the file lacks a
    weight that the adapter's configuration promises (modules_to_save, bias), a module is quantised or of a
    type without a plain weight, or a saved weight is shared with another module.
    """
    modules = _translated(adapter, module, [f"{name}.weight" for name in adapter.layers])
    own = {old.removesuffix(".weight"): new.removesuffix(".weight") for old, new in modules.items()}
    kept = _translated(adapter, module, adapter.saved)
    renamed = replace(
        adapter,
        layers={own[name]: layer for name, layer in adapter.layers.items()},
        saved={kept[name]: tensor for name, tensor in adapter.saved.items()},
    )
    renamed = replace(renamed, saved=_foreign(renamed, module))
    found = find_targets(module, list(renamed.layers), "all", shared=True)
    targets = tuple(target for target in found if target.name in renamed.layers)
    _require_promised(renamed, module)
    for target in targets:
        _require_shape(adapter, target.name, renamed.layers[target.name].shape, target.shape)
    state = module.state_dict()
    for name, tensor in renamed.saved.items():
        _require_shape(adapter, name, tuple(tensor.shape), tuple(state[name].shape))
    _require_unshared(module, renamed)
    return Fitted(targets, renamed)


def _foreign(adapter: Adapter, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the saved weights without those of adapted layers that are the network's own, bit for bit."""
    state = module.state_dict()

    def own(name: str, tensor: torch.Tensor) -> bool:
        there = state[name]
        return there.shape == tensor.shape and torch.equal(tensor.to(there), there)

    adapted = {name for name in adapter.saved if name.rpartition(".")[0] in adapter.layers}
    return {
        name: tensor for name, tensor in adapter.saved.items() if not (name in adapted and own(name, tensor))
    }


@contextmanager
def with_saved(network: Network, adapter: Adapter) -> Iterator[Network]:
    """Inside the block the network holds the whole weights that the adapter saved; after it, its own again.

    Gives the base that δ is measured against, as a `Network` with a fingerprint of its own; without saved
    weights it is the network itself. They are rounded to the dtype of the weight that they replace, and the
    network's weights come back bit for bit, also when the block raises. `adapter` has the network's own
    names, see :func:`fitted`.

    Raises `InputError` when the readout keeps numbers computed from the weights before: label prototypes, or
    a prompt whose label words' rows of the head are among what is saved.
    """
    if not adapter.saved:
        yield network
        return
    state = network.module.state_dict()
    before = {name: state[name].clone() for name in adapter.saved}
    try:
        with torch.no_grad():
            for name, tensor in adapter.saved.items():
                state[name].copy_(tensor)
        _require_live(network, adapter)
        yield replace(network, fingerprint=fingerprint(network.module))
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                state[name].copy_(tensor)


def _translated(adapter: Adapter, module: nn.Module, names: Collection[str]) -> dict[str, str]:
    """Return the network's own name for every weight of the adapter."""
    found = current_names(module, names)
    if absent := [name for name in names if name not in found]:
        listed = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
        if any(_EXPERT.search(name) for name in absent) and any(
            "expert" in n for n, _ in module.named_parameters()
        ):
            raise InputError(
                f"got the adapter {adapter.name} for {listed}, layers of single experts, which this "
                f"release of transformers joins to one parameter for all ({type(module).__name__}), expected "
                "LoRA on layers that are Linear here; train it again without the experts."
            )
        raise InputError(
            f"got the adapter {adapter.name} for {listed}, which this network ({type(module).__name__}) does "
            f"not have, expected weights such as {', '.join(_alike(module, absent[0]))}; load the network "
            f"that the adapter was trained on{_called(adapter)}."
        )
    if len(set(found.values())) < len(found):
        raise InputError(
            f"got the adapter {adapter.name} with two names for one weight of this network, expected one; "
            "save it again with PEFT."
        )
    return found


def _require_promised(adapter: Adapter, module: nn.Module) -> None:
    """Refuse a file without the whole weights that its configuration names and this network has."""
    if adapter.folder is None:  # in a live model they are where they are used
        return
    saved = "|".join(map(re.escape, adapter.modules_to_save))
    within = re.compile(rf"(?:.*\.)?(?:{saved})\..+") if saved else None
    lacking = []
    for name, _ in module.named_parameters(remove_duplicate=False):
        owner, _, own = name.rpartition(".")
        biased = own == "bias" and (
            adapter.bias == "all" or (adapter.bias != "none" and owner in adapter.layers)
        )
        if name not in adapter.saved and (biased or (within and within.fullmatch(name))):
            lacking.append(name)
    if lacking:
        raise InputError(
            f"got the adapter {adapter.name} without {', '.join(lacking[:3])}, which its configuration says "
            f"it trained ({'bias' if adapter.bias != 'none' else 'modules_to_save'}), expected these weights "
            "in its file, since nobody else has them; save the adapter again with PEFT, from the live model."
        )


def _alike(module: nn.Module, absent: str) -> list[str]:
    """Return up to three of the network's names that end as this one does, else of any of its matrices."""
    names = {name: parameter.dim() for name, parameter in module.named_parameters()}
    ending = "." + ".".join(absent.split(".")[-2:])
    alike = [name for name in names if name.endswith(ending)]
    return (alike or [name for name, axes in names.items() if axes == 2])[-3:]


def _called(adapter: Adapter) -> str:
    return f", {adapter.base_model}" if adapter.base_model else ""


def _require_shape(adapter: Adapter, name: str, given: tuple[int, ...], own: tuple[int, ...]) -> None:
    if given != own:
        raise InputError(
            f"got the adapter {adapter.name} with the shape {given} for {name}, expected {own}, the "
            f"network's own; load the network that the adapter was trained on{_called(adapter)}"
            f"{', and give data with as many labels' if name in adapter.saved else ''}."
        )


def _require_unshared(module: nn.Module, adapter: Adapter) -> None:
    """Refuse a saved weight that a second module uses, unless that one's is saved too, and the same."""
    owners: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        owners.setdefault(id(tensor), []).append(name)
    for names in owners.values():
        given = [name for name in names if name in adapter.saved]
        first = adapter.saved[given[0]] if given else None
        if first is not None and (
            len(given) < len(names) or not all(torch.equal(adapter.saved[name], first) for name in given)
        ):
            raise InputError(
                f"got the adapter {adapter.name} with a weight of its own for {given[0]}, which this network "
                f"shares ({' = '.join(names)}), expected one weight for both; untie the network's weights."
            )


def _require_live(network: Network, adapter: Adapter) -> None:
    """Refuse a reader that remembers what the saved weights replaced."""
    reader = network.reader
    stale = isinstance(reader, PrototypeReader)
    if isinstance(reader, PromptReader):
        stale = not reader.agrees_with(network.module)
    if stale:
        raise InputError(
            f"got the adapter {adapter.name}, which replaces {', '.join(list(adapter.saved)[:3])}, and a "
            f"readout of {network.name} that keeps numbers from before, expected one that reads the live "
            "network; use a classification head."
        )
