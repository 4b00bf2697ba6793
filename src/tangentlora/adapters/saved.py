"""Whole weights that an adapter carries beside its factors, as the modules that PEFT saves them by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tangentlora.errors import InputError


def saved_modules(module: nn.Module, saved: Mapping[str, Tensor], adapted: tuple[str, ...]) -> list[str]:
    """Return the modules to save that hold exactly these parameters, outermost first where they nest.

    `saved` has the network's own full names. PEFT saves modules whole, without LoRA inside. Raises
    `InputError` for parameters that are only part of a module, such as trained biases, and for modules with
    an adapted layer in them.
    """
    owners = {name.rpartition(".")[0] for name in saved}
    outermost = sorted(name for name in owners if not any(_within(name, other) for other in owners - {name}))
    state = module.state_dict()
    for owner in outermost:
        lacking = [name for name in state if _within(name, owner) and name not in saved]
        own = sorted(name for name in saved if _within(name, owner))
        if not owner or lacking or any(_within(name, owner) for name in adapted):
            raise InputError(
                f"got an adapter with weights of its own for {', '.join(own[:3])}, which are only "
                f"part of {owner or 'the network'}, expected whole modules beside the LoRA layers "
                "(modules_to_save); train it with bias='none'."
            )
    return outermost


def _within(name: str, owner: str) -> bool:
    return not owner or name == owner or name.startswith(f"{owner}.")


@contextmanager
def zeroed(module: nn.Module, saved: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block the network has zeros in place of these parameters; after it, its own, bit for bit.

    So an adapter that is to bring them along cannot give the right outputs without them.
    """
    state = module.state_dict()
    before = {name: state[name].clone() for name in saved}
    try:
        with torch.no_grad():
            for name in saved:
                state[name].zero_()
        yield
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                state[name].copy_(tensor)
