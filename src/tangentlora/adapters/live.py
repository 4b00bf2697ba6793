"""A live PeftModel: its adapter as tensors, and its network without the adapter, on the very module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tangentlora.adapters.adapter import Adapter, as_layer, require_layers
from tangentlora.adapters.config import require_plain
from tangentlora.adapters.read import described
from tangentlora.errors import InputError


def adapter_of(model: nn.Module, adapter_name: str | None = None) -> Adapter:
    """Return a snapshot of the LoRA adapter in a live `PeftModel`, the active one unless another is named.

    δ_t = s_t B_t A_t with the scalings as they are in the layers now. `saved` holds the modules to save;
    trained biases are already in the network, where PEFT trains them in place. The model is left alone.

    Raises `InputError` when it is no PeftModel, when there is no such adapter or several are active, when one
    is merged into the weights, and when it is not plain LoRA.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    peft_model = _peft_model(model)
    chosen = _chosen(peft_model, adapter_name)
    name = f"{chosen!r} of {type(peft_model).__name__}"
    settings = peft_model.peft_config[chosen].to_dict()
    require_plain(settings, name)
    base: nn.Module = peft_model.get_base_model()
    layers, saved = {}, dict[str, Tensor]()
    for module, child in base.named_modules():
        if isinstance(child, LoraLayer) and chosen in {*child.lora_A, *child.lora_embedding_A}:
            if chosen in child.lora_variant or chosen not in child.lora_A:
                raise InputError(
                    f"got the adapter {name} with a layer {type(child).__name__} at {module} that is not "
                    "W + s·B·A, expected plain LoRA on Linear layers; convert it with peft.save_as_lora "
                    "where that is supported, or train it again."
                )
            A, B = child.lora_A[chosen].weight, child.lora_B[chosen].weight
            layers[module] = as_layer(name, module, A, B, child.scaling[chosen])
        if isinstance(child, ModulesToSaveWrapper) and chosen in child.modules_to_save:
            for key, tensor in child.modules_to_save[chosen].state_dict().items():
                saved[f"{module}.{key}"] = tensor.detach().cpu().clone()
    require_layers(name, layers)
    return described(name, settings, layers, saved)


@contextmanager
def bare(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the block a live `PeftModel`'s base network stands without PEFT's layers, and is given.

    The layers are the model's own, not copies: each of PEFT's wrappers is replaced by what it wraps (modules
    to save by their originals, for which see `adapter_of(...).saved`). Within the block the base may be put
    into evaluation mode, frozen and fitted with hooks and other adapters. After it, also when it raises, the
    model is as before: same modules, same modes, same flags, same configuration. The PeftModel itself is not
    to be called inside.

    Raises `InputError` when it is no PeftModel or an adapter is merged into the weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    peft_model = _peft_model(model)
    base: nn.Module = peft_model.get_base_model()
    modes = [(child, child.training) for child in peft_model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in peft_model.parameters()]
    configs = {id(child.config): child.config for child in base.modules() if hasattr(child, "config")}
    settings = [(config, dict(vars(config))) for config in configs.values() if hasattr(config, "__dict__")]
    mark = vars(base).pop("peft_config", None)
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        # One at a time, since a wrapper may hold another.
        while found := next(
            (
                item
                for item in _children(base)
                if isinstance(item[2], BaseTunerLayer | AuxiliaryTrainingWrapper)
            ),
            None,
        ):
            parent, name, wrapper = found
            swapped.append(found)
            inner = wrapper.base_layer if isinstance(wrapper, BaseTunerLayer) else wrapper.original_module
            setattr(parent, name, inner)
        yield base
    finally:
        for parent, name, wrapper in reversed(swapped):
            setattr(parent, name, wrapper)
        if mark is not None:
            vars(base)["peft_config"] = mark
        for child, training in modes:
            child.training = training
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)
        for config, values in settings:
            vars(config).clear()
            vars(config).update(values)


def trained_in_place(model: nn.Module) -> tuple[str, ...]:
    """Return the base network's own weights that a live `PeftModel` trains, such as biases, by name.

    An adapter's file holds them only where its configuration says so. Raises `InputError` as `bare` does.
    """
    with bare(model) as base:
        return tuple(name for name, p in base.named_parameters() if p.requires_grad)


def _children(module: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    return ((parent, *child) for parent in module.modules() for child in parent.named_children())


def _peft_model(model: nn.Module) -> Any:
    """Return the model as a PeftModel none of whose adapters is merged."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        raise InputError(
            f"got a {type(model).__name__}, expected a PeftModel; wrap the network with peft.get_peft_model "
            "or PeftModel.from_pretrained."
        )
    for name, child in model.get_base_model().named_modules():
        if isinstance(child, BaseTunerLayer) and child.merged:
            raise InputError(
                f"got a PeftModel with {', '.join(child.merged_adapters)} merged into {name}, expected the "
                "adapter beside the pretrained weights; call unmerge_adapter() first."
            )
    return model


def _chosen(model: Any, adapter_name: str | None) -> str:
    if adapter_name is None and len(model.active_adapters) == 1:
        return str(model.active_adapters[0])
    if adapter_name is None or adapter_name not in model.peft_config:
        given = "no name" if adapter_name is None else f"the adapter name {adapter_name!r}"
        raise InputError(
            f"got {given} for a PeftModel with the adapters {', '.join(model.peft_config)}, of which "
            f"{', '.join(model.active_adapters) or 'none'} are active, expected one of them; name it "
            "with adapter_name=."
        )
    return adapter_name
