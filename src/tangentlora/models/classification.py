"""Classification heads over text, images and sound: the network's own logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, final, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.media import AudioEncoder, ImageEncoder
from tangentlora.models.network import Features
from tangentlora.models.readouts import Readout
from tangentlora.models.text import TextEncoder, accepted_inputs


@final
@dataclass(frozen=True)
class ClassificationHead(Readout):
    """z = the K logits of a sequence, image or audio classification network.

    `init` says where the head comes from: `checkpoint` takes it from the checkpoint and refuses one without
    it; `probe` and `random` start at random values drawn from `seed`, and `probe` expects a call of
    :func:`tangentlora.models.probe.fit_linear_probe` before anything else. Inputs are texts or pairs of
    texts cut to `max_length` tokens, Pillow images, or mono waveforms at the network's sampling rate cut to
    `max_seconds`. A speech network that takes no attention mask hears every waveform padded with silence to
    exactly `max_seconds`, so that its outputs depend on the example alone and not on the batch.

    Raises `InputError` for numbers that are not positive.
    """

    num_labels: int
    init: Literal["checkpoint", "probe", "random"] = "checkpoint"
    modality: Literal["text", "image", "audio"] = "text"
    max_length: int = 128
    max_seconds: float = 10.0
    seed: int = 0

    when_incomplete: ClassVar[str] = (
        "use --head-init probe, or choose a checkpoint fine-tuned for these labels"
    )

    def __post_init__(self) -> None:
        if min(self.num_labels, self.max_length, self.max_seconds) <= 0:
            raise InputError(
                f"got num_labels={self.num_labels}, max_length={self.max_length}, max_seconds="
                f"{self.max_seconds}, expected positive numbers; correct the one that is not."
            )

    def model_class(self) -> Any:
        import transformers

        return {
            "text": transformers.AutoModelForSequenceClassification,
            "image": transformers.AutoModelForImageClassification,
            "audio": transformers.AutoModelForAudioClassification,
        }[self.modality]

    def load_processor(self, source: str, revision: str | None) -> Any:
        import transformers

        if self.modality == "text":
            return super().load_processor(source, revision)
        if self.modality == "audio":
            return transformers.AutoFeatureExtractor.from_pretrained(
                source, revision=revision, trust_remote_code=False
            )
        # Pillow's arithmetic everywhere: torchvision, where installed, would resize to other pixels.
        return transformers.AutoImageProcessor.from_pretrained(
            source, revision=revision, trust_remote_code=False, backend="pil"
        )

    def configured(self, config: Any) -> Any:
        if config.num_labels != self.num_labels:
            config.num_labels = self.num_labels
        return config

    def initialises(self, module: nn.Module, weight: str) -> bool:
        """A new head may be missing, with its pooler; what belongs to the pretrained parts may not."""
        from transformers import PreTrainedModel

        if self.init == "checkpoint":
            return False
        pretrained = [name for name, child in module.named_children() if isinstance(child, PreTrainedModel)]
        return weight.split(".")[0] not in pretrained or "pooler" in weight.split(".")

    def bind(self, module: nn.Module, processor: Any) -> ClassificationReader:
        """Return the reader; raise `InputError` if the network's number of labels differs."""
        config: Any = module.config
        if config.num_labels != self.num_labels:
            raise InputError(
                f"got a network with {config.num_labels} labels, expected {self.num_labels}; "
                "load it with a new head or change num_labels."
            )
        encoder: InputEncoder
        if self.modality == "text":
            encoder = TextEncoder.for_module(module, processor, self.max_length)
        elif self.modality == "image":
            encoder = ImageEncoder(processor, accepted_inputs(module))
        else:
            samples = round(self.max_seconds * processor.sampling_rate)
            encoder = AudioEncoder(processor, accepted_inputs(module), samples)
        return ClassificationReader(self, module, encoder)


@runtime_checkable
class InputEncoder(Protocol):
    """The part of a reader that depends on the modality."""

    def encode(self, inputs: Sequence[Any]) -> list[Features]: ...

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]: ...


@final
@dataclass(frozen=True, eq=False)
class ClassificationReader:
    """A classification network and the encoder of its inputs; the outputs are its logits."""

    readout: ClassificationHead
    module: nn.Module
    encoder: InputEncoder

    def encode(self, inputs: Sequence[Any]) -> list[Features]:
        return self.encoder.encode(inputs)

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        return self.encoder.collate(features)

    def outputs(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "B K"]:
        dtype = next(self.module.parameters()).dtype
        cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        logits: Tensor = self.module(**cast).logits
        return logits

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"readout": "classification", "modality": self.readout.modality}
        if isinstance(self.encoder, AudioEncoder):
            described["max_samples"] = self.encoder.max_samples
        return described
