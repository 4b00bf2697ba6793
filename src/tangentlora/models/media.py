"""From images and waveforms to tensors, by the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch import Tensor
from torch.nn import functional

from tangentlora.data.pictures import as_rgb
from tangentlora.errors import InputError
from tangentlora.models.lengths import Encoded
from tangentlora.models.network import Features
from tangentlora.models.text import collate

_SHORTEST = 0.025  # seconds: one frame of the usual convolutional front ends


@final
@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """Pillow images through the checkpoint's own resizing and normalisation."""

    processor: Any
    names: frozenset[str]

    def encode(self, inputs: Sequence[Any]) -> list[Features]:
        """Return the pixels (3,H,W) of each image.

        Raises `InputError` for what is not a Pillow image, for one that `as_rgb` refuses, and where the
        processor leaves images of different sizes.
        """
        from PIL import Image

        encoded = []
        for i, image in enumerate(inputs):
            if not isinstance(image, Image.Image):
                raise InputError(
                    f"got example {i} of type {type(image).__name__}, expected a Pillow image; open it with "
                    "Pillow."
                )
            pixels = self.processor(images=as_rgb(image, f"example {i}"), return_tensors="pt")
            encoded.append({name: tensor[0] for name, tensor in pixels.items() if name in self.names})
            _require_same_shapes(encoded[0], encoded[i], i)
        return encoded

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        return collate(features, {})


@final
@dataclass(frozen=True, eq=False)
class AudioEncoder:
    """Mono waveforms through the checkpoint's feature extractor, cut to `max_samples`."""

    extractor: Any
    names: frozenset[str]
    max_samples: int

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """Return samples (S,) or spectral features per waveform.

        Raises `InputError` for what is not a finite one-dimensional array of at least 25 ms.
        """
        rate, most = self.extractor.sampling_rate, self._most()
        encoded, lost = [], []
        for i, wave in enumerate(inputs):
            samples = np.asarray(wave)
            if samples.ndim != 1 or samples.dtype.kind != "f" or not np.isfinite(samples).all():
                raise InputError(
                    f"got example {i} of shape {samples.shape} and type {samples.dtype}, expected a finite "
                    "one-dimensional waveform of floats; mix to mono and scale to the range from -1 to 1."
                )
            if len(samples) < _SHORTEST * rate:
                raise InputError(
                    f"got {len(samples)} samples in example {i}, expected at least {_SHORTEST * rate:.0f} at "
                    f"{rate} Hz; drop the recording."
                )
            lost.append((len(samples) - most) / rate)
            waveform = samples[: self.max_samples].astype(np.float32)
            extracted = self.extractor(waveform, sampling_rate=rate, return_tensors="pt")
            encoded.append({name: tensor[0] for name, tensor in extracted.items() if name in self.names})
        return Encoded(encoded, lost, limit=most / rate, part="their end", unit="seconds")

    def _most(self) -> int:
        """Return how many samples are heard: Whisper's kind of extractor has a window of its own."""
        return min(self.max_samples, int(getattr(self.extractor, "n_samples", None) or self.max_samples))

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Pad with silence and a zero mask, and unmasked samples to `max_samples`, whatever the batch."""
        silence = float(self.extractor.padding_value)
        batch = collate(features, {"input_values": silence})
        samples = batch.get("input_values")
        if samples is not None and samples.dim() == 2 and "attention_mask" not in batch:
            padding = (0, self.max_samples - samples.shape[1])
            batch["input_values"] = functional.pad(samples, padding, value=silence)
        return batch


def _require_same_shapes(first: Features, example: Features, number: int) -> None:
    """Refuse images that the processor leaves in different sizes, which no batch can hold."""
    for name, tensor in example.items():
        if tensor.shape != first[name].shape:
            raise InputError(
                f"got example {number} of size {tuple(tensor.shape)} after the network's processor and "
                f"example 0 of {tuple(first[name].shape)}, expected one size; crop or resize "
                "the images to one size."
            )
