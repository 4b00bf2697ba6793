"""Adapters that PEFT itself makes and saves, with random weights instead of trained ones."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

SETTINGS = "adapter_config.json"
TENSORS = "adapter_model.safetensors"


@contextmanager
def peft_speaking() -> Iterator[None]:
    """Let PEFT warn, which in the tests would otherwise be an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft_model(module: nn.Module, **settings: Any) -> Any:
    """Return `module` with LoRA layers in it; whatever PEFT would train is random, drawn from a seed."""
    from peft import LoraConfig, get_peft_model

    with peft_speaking(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = get_peft_model(module, LoraConfig(**settings)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def saved_by_peft(module: nn.Module, folder: Path, **settings: Any) -> Path:
    """Save such an adapter in `folder` and return the folder; `module` is changed."""
    model = peft_model(module, **settings)
    with peft_speaking():
        model.save_pretrained(folder)
    return folder


def loaded_by_peft(module: nn.Module, folder: Path) -> Any:
    """Return `module` with the adapter as PEFT loads it."""
    from peft import PeftModel

    with peft_speaking():
        return PeftModel.from_pretrained(module, str(folder)).eval()


def with_settings(folder: Path, **changes: Any) -> Path:
    """Change fields of the adapter's configuration in place."""
    path = folder / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder
