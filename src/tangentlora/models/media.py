"""From images and waveforms to tensors, by the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch import Tensor
from torch.nn import functional

from tangentlora.errors import InputError
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
        """Return the pixels (3,H,W) of each image; raise `InputError` for what is not a Pillow image."""
        from PIL import Image

        encoded = []
        for i, image in enumerate(inputs):
            if not isinstance(image, Image.Image):
                raise InputError(
                    f"got example {i} of type {type(image).__name__}, expected a Pillow image; open it with "
                    "Pillow."
                )
            pixels = self.processor(images=image.convert("RGB"), return_tensors="pt")
            encoded.append({name: tensor[0] for name, tensor in pixels.items() if name in self.names})
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

    def encode(self, inputs: Sequence[Any]) -> list[Features]:
        """Return samples (S,) or spectral features per waveform.

        Raises `InputError` for what is not a finite one-dimensional array of at least 25 ms.
        """
        rate = self.extractor.sampling_rate
        encoded = []
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
            waveform = samples[: self.max_samples].astype(np.float32)
            extracted = self.extractor(waveform, sampling_rate=rate, return_tensors="pt")
            encoded.append({name: tensor[0] for name, tensor in extracted.items() if name in self.names})
        return encoded

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Pad with silence and a zero mask, and unmasked samples to `max_samples`, whatever the batch."""
        silence = float(self.extractor.padding_value)
        batch = collate(features, {"input_values": silence})
        samples = batch.get("input_values")
        if samples is not None and samples.dim() == 2 and "attention_mask" not in batch:
            padding = (0, self.max_samples - samples.shape[1])
            batch["input_values"] = functional.pad(samples, padding, value=silence)
        return batch
