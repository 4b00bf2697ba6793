"""What a readout is: the choice of the K numbers that a pretrained network says about an example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar

from torch import nn

from tangentlora.models.network import Reader


class Readout(ABC):
    """A specification of the outputs f(x) ∈ R^K; `bind` ties it to a network and its processor.

    Implementations are frozen dataclasses: `MaskPrompt`, `CausalPrompt`, `Completion`, `Prototypes` and
    `ClassificationHead`.
    """

    seed: int = 0
    """Where weights that the checkpoint lacks are drawn from; see `initialises`."""

    when_incomplete: ClassVar[str] = "choose a checkpoint that was trained for this readout"
    """The remedy for a checkpoint that lacks weights."""

    @abstractmethod
    def model_class(self) -> Any:
        """Return the transformers Auto class that loads the network."""

    def load_processor(self, source: str, revision: str | None) -> Any:
        """Load what turns raw inputs into tensors; a tokenizer unless the readout says otherwise."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)

    def configured(self, config: Any) -> Any:
        """Return the configuration to build the network with, given the checkpoint's."""
        return config

    def initialises(self, module: nn.Module, weight: str) -> bool:
        """Say whether this weight may be missing from the checkpoint and start at seeded random values."""
        return False

    def draw(self, module: nn.Module, drawn: Collection[str]) -> None:  # noqa: B027 (most draw nothing)
        """Draw what is to start at random values and came with the checkpoint all the same.

        `drawn` names the weights that it lacks, which are drawn already.
        """

    @abstractmethod
    def bind(self, module: nn.Module, processor: Any) -> Reader:
        """Return the reader of this network's outputs; raise `InputError` if the network cannot give them."""
