"""From factors to a PEFT adapter on disk and back: the only door to `peft`, imported only when it is used."""

from tangentlora.adapters.adapter import Adapter, LoraLayer
from tangentlora.adapters.check import loaded, loaded_outputs
from tangentlora.adapters.fit import Fitted, fitted, with_saved
from tangentlora.adapters.live import adapter_of, bare, trained_in_place
from tangentlora.adapters.read import read_adapter
from tangentlora.adapters.saved import saved_modules, zeroed
from tangentlora.adapters.write import move_adapter, remove_adapter, write_adapter

__all__ = [
    "Adapter",
    "Fitted",
    "LoraLayer",
    "adapter_of",
    "bare",
    "fitted",
    "loaded",
    "loaded_outputs",
    "move_adapter",
    "read_adapter",
    "remove_adapter",
    "saved_modules",
    "trained_in_place",
    "with_saved",
    "write_adapter",
    "zeroed",
]
