"""Pictures of every kind have the brightness that their format gives them, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

import tiny_networks
from tangentlora.data.media import read_image
from tangentlora.data.pictures import as_rgb
from tangentlora.errors import InputError
from tangentlora.models import ClassificationHead, network_from_module

RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
EIGHT = np.rint(RAMP / 257).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey_are_scaled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray(RAMP).save(path)
    read = np.asarray(read_image(path))
    assert read.shape == (8, 8, 3)
    assert np.array_equal(read, np.stack([EIGHT] * 3, axis=-1))
    assert abs(float(read.mean()) - 127.5) < 0.5


def test_other_byte_orders_and_twelve_bits_are_scaled(tmp_path: Path) -> None:
    big = Image.frombytes("I;16B", (8, 8), RAMP.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(as_rgb(big, "it"))[..., 0], EIGHT)
    path = tmp_path / "twelve.tif"
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    Image.fromarray((RAMP >> 4).astype(np.uint16)).save(path, tiffinfo=tags)
    with Image.open(path) as image:
        image.tag_v2[258] = (12,)  # as a scanner of twelve bits writes it
        twelve = np.asarray(as_rgb(image, "it"))[..., 0]
    assert np.array_equal(twelve, np.rint((RAMP >> 4) * (255 / 4095)).astype(np.uint8))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "in floating-point numbers"),
        (RAMP.astype(np.int32), "in whole numbers of 32 bits"),
    ],
)
def test_numbers_without_a_white_are_refused(tmp_path: Path, array: np.ndarray, said: str) -> None:
    path = tmp_path / "it.tif"
    Image.fromarray(array).save(path)
    with pytest.raises(InputError, match=f"{said}, for which black and white are not fixed,"):
        read_image(path)


def test_live_images_are_read_as_files_are() -> None:
    module = tiny_networks.tiny_module("vit")
    readout = ClassificationHead(3, modality="image")
    network = network_from_module(module, tiny_networks.tiny_processor("vit"), readout, name="vit")
    sixteen, eight = Image.fromarray(RAMP), Image.fromarray(EIGHT)
    assert np.array_equal(network.predict([sixteen]).numpy(), network.predict([eight]).numpy())
    with pytest.raises(InputError, match="got example 1 in floating-point numbers"):
        network.predict([eight, Image.fromarray(EIGHT.astype(np.float32))])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "YCbCr", "RGBA", "LA"])
def test_eight_bits_of_any_kind_are_as_pillow_converts_them(mode: str) -> None:
    image = Image.fromarray(np.stack([EIGHT, EIGHT.T, EIGHT[::-1]], axis=-1)).convert(mode)
    assert np.array_equal(np.asarray(as_rgb(image, "it")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_have_no_colour(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(EIGHT).convert(mode)
    if mode == "P":
        image.info["transparency"] = 0
    else:
        image.putalpha(Image.fromarray(EIGHT))
    path = tmp_path / "it.png"
    image.save(path)
    with pytest.raises(InputError, match="with transparent pixels, whose colour depends on what lies behind"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_several_images_in_a_file_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"it.{suffix}"
    frames = [Image.fromarray(np.full((8, 8, 3), shade, dtype=np.uint8)) for shade in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"got 2 images in .*, expected one"):
        read_image(path)


def test_pictures_are_turned_upright() -> None:
    image = Image.fromarray(RAMP)
    image.getexif()[274] = 6  # a quarter turn clockwise shows it upright
    assert np.array_equal(np.asarray(as_rgb(image, "it"))[..., 0], np.rot90(EIGHT, -1))
