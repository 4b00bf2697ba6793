"""Classification heads over text, images and sound: the network's own logits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.architecture import (
    READ_OTHERWISE,
    has_foreign_head,
    require_classifier,
    require_single_label,
    saved_as,
)
from tangentlora.models.media import AudioEncoder, ImageEncoder
from tangentlora.models.network import Features
from tangentlora.models.readouts import Readout
from tangentlora.models.text import Side, TextEncoder, accepted_inputs, padding_told


@final
@dataclass(frozen=True)
class ClassificationHead(Readout):
    """z = the K logits of a sequence, image or audio classification network.

    `init` says where the head comes from: `checkpoint` takes it from the checkpoint and refuses one without
    it, of another task or for several labels at once; `probe` and `random` start at random values drawn from
    `seed`, and `probe` expects a call of :func:`tangentlora.models.probe.fit_linear_probe` before anything
    else. Inputs are texts or pairs of texts cut to `max_length` tokens (None: all that the network and its
    tokenizer take), Pillow images, or mono waveforms at the network's sampling rate cut to `max_seconds`.
    Texts are padded on the right, or on the left where the network's outputs do not bear that. A speech
    network that takes no attention mask hears every waveform padded with silence to exactly `max_seconds`, so
    that its outputs depend on the example alone and not on the batch.

    Raises `InputError` for numbers that are not positive, and for a `max_length` of inputs without tokens.
    """

    num_labels: int
    init: Literal["checkpoint", "probe", "random"] = "checkpoint"
    modality: Literal["text", "image", "audio"] = "text"
    max_length: int | None = None
    max_seconds: float = 10.0
    seed: int = 0

    when_incomplete: ClassVar[str] = (
        "use --head-init probe, or choose a checkpoint fine-tuned for these labels"
    )

    def __post_init__(self) -> None:
        if min(self.num_labels, 1 if self.max_length is None else self.max_length, self.max_seconds) <= 0:
            raise InputError(
                f"got num_labels={self.num_labels}, max_length={self.max_length}, max_seconds="
                f"{self.max_seconds}, expected positive numbers; correct the one that is not."
            )
        if self.max_length is not None and self.modality != "text":
            raise InputError(
                f"got max_length={self.max_length} for the modality {self.modality}, expected it for text "
                "alone; leave it out."
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
        """Return the configuration with this many labels; raise `InputError` for a head of another task."""
        architecture = saved_as(config)
        if self.init != "probe" and has_foreign_head(architecture):
            raise InputError(
                f"got a checkpoint of {architecture}, whose head is not one over whole examples, expected a "
                f"classifier; {READ_OTHERWISE}."
            )
        if config.num_labels != self.num_labels:
            config.num_labels = self.num_labels
        return config

    def initialises(self, module: nn.Module, weight: str) -> bool:
        """A new head may be missing, with its pooler; what belongs to the pretrained parts may not."""
        if self.init == "checkpoint":
            return False
        return _in_head(module, weight) or "pooler" in weight.split(".")

    def draw(self, module: nn.Module, drawn: Collection[str]) -> None:
        """Draw a new head's weights that came with the checkpoint; the pretrained parts stay as they are."""
        if self.init == "checkpoint":
            return
        kept = [name for name, _ in module.named_parameters() if _in_head(module, name) and name not in drawn]
        for name in kept:
            owner = module.get_submodule(name.rpartition(".")[0])
            # transformers draws whatever does not carry this mark
            for part in (module.get_parameter(name), owner, module):
                part._is_hf_initialized = False  # type: ignore[assignment, union-attr]
        if kept:
            module.initialize_weights()  # type: ignore[operator]

    def bind(self, module: nn.Module, processor: Any) -> ClassificationReader:
        """Return the reader.

        Raises `InputError` for an architecture without a head over whole examples, for one of several labels
        at once or of numbers, and if the number of labels differs.
        """
        config: Any = module.config
        require_classifier(module, self.modality)
        if self.init == "checkpoint":
            require_single_label(config)
        if config.num_labels != self.num_labels:
            raise InputError(
                f"got a network with {config.num_labels} labels, expected {self.num_labels}; "
                "load it with a new head or change num_labels."
            )
        encoder: InputEncoder
        if self.modality == "text":
            texts = TextEncoder.for_module(module, processor, self.max_length)
            return _padded_well(ClassificationReader(self, module, texts))
        if self.modality == "image":
            encoder = ImageEncoder(processor, accepted_inputs(module))
        else:
            samples = round(self.max_seconds * processor.sampling_rate)
            encoder = AudioEncoder(processor, accepted_inputs(module), samples)
        return ClassificationReader(self, module, encoder)


def _in_head(module: nn.Module, weight: str) -> bool:
    """Say whether a weight belongs to no pretrained part of the network."""
    from transformers import PreTrainedModel

    part = getattr(module, weight.split(".")[0])
    return not isinstance(part, PreTrainedModel)


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
        with padding_told(self.module, cast) as told:
            logits = getattr(self.module(**told), "logits", None)
        shape = None if logits is None else tuple(logits.shape)
        if logits is None or shape != (len(next(iter(cast.values()))), self.readout.num_labels):
            raise InputError(
                f"got outputs of shape {shape} from {type(self.module).__name__}, expected "
                f"{self.readout.num_labels} logits per example; {READ_OTHERWISE}."
            )
        found: Tensor = logits
        return found

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"readout": "classification", "modality": self.readout.modality}
        if isinstance(self.encoder, AudioEncoder):
            described["max_samples"] = self.encoder.max_samples
        return described


@torch.no_grad()
def _padded_well(reader: ClassificationReader) -> ClassificationReader:
    """Return the reader with padding on the side that leaves an example's outputs as they are alone.

    Most networks read from the left or know the padding by its mask; XLNet's reads the last token, whatever
    it is. Where neither side will do it stays on the right, and a pass over examples refuses it. Raises
    `InputError` where the network cannot read what the tokenizer gives.
    """
    try:
        features = reader.encode(["a", "a " * 9])
    except InputError:  # a vocabulary without this letter
        return reader
    device = next(reader.module.parameters()).device

    def outputs(side: Side, count: int) -> Float[Tensor, "1 K"]:
        padded = replace(reader, encoder=replace(reader.encoder, side=side))  # type: ignore[type-var]
        return padded.outputs({n: t.to(device) for n, t in padded.collate(features[:count]).items()})[:1]

    try:
        alone = outputs("right", 1)
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"got {type(reader.module).__name__}, which cannot read a text as the tokenizer gives it "
            f"({reason[0].rstrip('.')}), expected a network and its own tokenizer; take both from one "
            "checkpoint."
        ) from error
    tolerance = torch.finfo(alone.dtype).eps ** 0.5 * max(1e-3, float(alone.abs().max()))
    sides: tuple[Side, ...] = ("right", "left")
    best = next((s for s in sides if bool((outputs(s, 2) - alone).abs().max() <= tolerance)), "right")
    return replace(reader, encoder=replace(reader.encoder, side=best))  # type: ignore[type-var]
