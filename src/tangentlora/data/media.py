"""Decoding images and recordings: RGB images, and mono waveforms at one sampling rate."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tangentlora.data.examples import Examples
from tangentlora.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


class Encoded(Protocol):
    """A file, or something like one, whose `str` is its name."""

    def read_bytes(self) -> bytes: ...


def decode_images(examples: Examples) -> Examples:
    """Return examples of encoded images with the images decoded; see :func:`read_image`."""
    return replace(examples, inputs=tuple(read_image(source) for source in examples.inputs))


def decode_waveforms(examples: Examples, sampling_rate: int | None) -> Examples:
    """Return examples of encoded recordings as waveforms at `sampling_rate` hertz (None: the rate they share).

    Raises InputError when the rates differ and none was asked for, and as :func:`read_waveform` does.
    """
    waveforms = []
    for source in examples.inputs:
        waveform, rate = read_waveform(source)
        if sampling_rate is None:
            sampling_rate = rate
            first = source
            may_differ = False
        ...
    return examples


def read_image(source: Encoded) -> Image:
    """Return the image in RGB, turned upright as its metadata says; raise InputError if it cannot be decoded."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source.read_bytes())) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot decode the image {source} ({error}); replace or remove the file") from error
