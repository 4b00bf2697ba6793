"""An adapter folder read back by PEFT itself: what the network says with it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tangentlora.adapters.write import CONFIG, PREFIX, WEIGHTS
from tangentlora.errors import InputError
from tangentlora.models.network import Network


def loaded_outputs(
    network: Network, folder: Path, inputs: Sequence[Any], batch_size: int = 32
) -> Float[Tensor, "N K"]:
    """Return the outputs (N,K) on raw inputs of the network with the adapter in `folder` as PEFT loads it.

    Raises `InputError` in the cases of `loaded`.
    """
    with loaded(network, folder):
        return network.predict(inputs, batch_size)


@contextmanager
def loaded(network: Network, folder: Path) -> Iterator[None]:
    """Inside the block the network has the adapter in `folder` as PEFT loads it; after it, it is as before.

    PEFT puts its layers into the live module, so that the network's own reader reads the outputs. They are
    taken out again also when the block raises: same modules, same bits, same flags. The random state is left
    alone.

    Raises `InputError` when a file is missing or damaged, when loading would change the network's own weights
    (PiSSA and other decomposing initialisations, trained biases, replicated layers), or when a layer is
    missing on either side or a shape differs; and, as outputs are read inside the block, when the network's
    reader calls an adapted layer without its adapter.
    """
    n_tensors = _require_plain(folder)

    from peft import PeftModel, get_peft_model_state_dict

    with restored(network.module):
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                # PEFT sets this right layer by layer where Linear and Conv1D are adapted together.
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
                # PEFT's own use of an old name in transformers.
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
                warnings.filterwarnings("error", message="Found missing adapter keys")
                warnings.filterwarnings("error", message="The following (rank|alpha)_pattern keys did not")
                adapter = PeftModel.from_pretrained(
                    network.module, str(folder), torch_device=str(network.device)
                )
                found = len(get_peft_model_state_dict(adapter, save_embedding_layers=False))
        except (ValueError, RuntimeError, KeyError, UserWarning, RuntimeWarning) as error:
            raise InputError(_misfit(network, folder, " ".join(str(error).split()))) from error
        if found != n_tensors:
            raise InputError(
                _misfit(network, folder, f"only {found} of its {n_tensors} tensors have a place")
            )
        with _watched(network, adapter):
            yield


def _require_plain(folder: Path) -> int:
    """Return the number of tensors of a whole adapter whose loading changes no weight of the network."""
    from safetensors import SafetensorError, safe_open

    try:
        settings = dict(json.loads((folder / CONFIG).read_text()))
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            n_tensors = len(file.keys())
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(
            f"got {folder} ({error}), expected a PEFT adapter with {CONFIG} and {WEIGHTS}; give the folder "
            "of one, or write it again."
        ) from error
    changes = {
        "peft_type": settings.get("peft_type") != "LORA",
        "init_lora_weights": settings.get("init_lora_weights", True) not in (True, False, "gaussian"),
        "bias": settings.get("bias", "none") != "none",
        "layer_replication": bool(settings.get("layer_replication")),
        "kasa_config": bool(settings.get("kasa_config")),
    }
    for name in (name for name, changing in changes.items() if changing):
        raise InputError(
            f"got the adapter {folder} with {name} = {settings.get(name)!r}, expected LoRA that leaves the "
            "network's own weights as they are; convert it to plain LoRA with PEFT first."
        )
    return n_tensors


def _misfit(network: Network, folder: Path, reason: str) -> str:
    return (
        f"got the adapter {folder}, which does not fit {network.name} ({reason}), expected an adapter of "
        "this network; load the network that the adapter's configuration names."
    )


@contextmanager
def _watched(network: Network, adapter: nn.Module) -> Iterator[None]:
    """Refuse calls of an adapted layer that do not come through PEFT's: a reader that kept the layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    def watch(name: str, wrapper: BaseTunerLayer) -> RemovableHandle:
        announced: list[None] = []

        def announce(*_: object) -> None:
            announced.append(None)

        def require_announcement(*_: object) -> None:
            if not announced:
                raise InputError(
                    f"got a readout of {network.name} that calls {name} without its adapter, expected one "
                    "that reads the live network; choose another readout or leave that layer out."
                )
            announced.pop()

        wrapper.register_forward_pre_hook(announce)
        handle: RemovableHandle = wrapper.base_layer.register_forward_pre_hook(require_announcement)
        return handle

    wrappers = {name: child for name, child in adapter.named_modules() if isinstance(child, BaseTunerLayer)}
    handles = [watch(name.removeprefix(PREFIX), wrapper) for name, wrapper in wrappers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Put back after the block every submodule and flag that PEFT changes, however far it came."""
    children = [(parent, *child) for parent in module.modules() for child in parent.named_children()]
    modes = [(child, child.training) for child in module.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for parent, name, child in children:
            setattr(parent, name, child)
        vars(module).pop("peft_config", None)
        for child, training in modes:
            child.training = training
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)
