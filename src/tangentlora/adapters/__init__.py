"""From factors to a PEFT adapter on disk and back: the only door to `peft`, imported only when it is used."""

from tangentlora.adapters.check import loaded, loaded_outputs
from tangentlora.adapters.write import write_adapter

__all__ = ["loaded", "loaded_outputs", "write_adapter"]
