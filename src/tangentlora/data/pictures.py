"""Pictures of any kind → RGB with eight bits a channel, or a refusal where scale or colours are unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tangentlora.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_BITS_PER_SAMPLE = 258  # the TIFF tag


def as_rgb(image: Image, name: str) -> Image:
    """Return an image in RGB, upright as its metadata says; `name` is what messages call it.

    Grey of sixteen bits is scaled to eight, v ↦ round(255 v / 65535), by 4095 where a TIFF file says that it
    has twelve bits. Raises InputError for what has no one meaning in RGB: whole numbers of 32 bits and
    floats, whose range no format fixes, pixels that are partly transparent, and files of several images (of
    the pictures that a camera puts beside the first one in a JPEG file, the first is meant).
    """
    from PIL import ImageOps

    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise InputError(
            f"got {frames} images in {name}, expected one; save the one that is meant in a file of its own"
        )
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        return _scaled(upright, 4095 if _says_twelve_bits(image) else 65535, name)
    if upright.mode in ("I", "F"):
        kind = "whole numbers of 32 bits" if upright.mode == "I" else "floating-point numbers"
        raise InputError(
            f"got {name} in {kind}, for which black and white are not fixed, expected 8 or 16 bits a "
            "channel; scale it to one of these and save it again"
        )
    may_be_clear = upright.mode in _WITH_ALPHA or "transparency" in upright.info
    if may_be_clear and upright.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise InputError(
            f"got {name} with transparent pixels, whose colour depends on what lies behind, expected an "
            "opaque image; put it on a background, such as white, and save it again"
        )
    return upright.convert("RGB")


def _says_twelve_bits(image: Image) -> bool:
    tags = getattr(image, "tag_v2", None) or {}
    return tags.get(_BITS_PER_SAMPLE) == (12,)


def _scaled(image: Image, white: int, name: str) -> Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if values.max(initial=0) > white:
        raise InputError(f"got {name} with values above its white, {white}; save it with 8 or 16 bits")
    grey = np.rint(values * (255 / white)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
