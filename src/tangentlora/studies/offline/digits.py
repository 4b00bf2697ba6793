"""A small ViT trained on handwritten digits 0 to 4, and the digits 5 to 9 as images that it has not seen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tangentlora.errors import InputError
from tangentlora.models.small import save_vit, small_vit
from tangentlora.studies.offline.made import Made, Size, make_once
from tangentlora.studies.offline.training import train

_STEPS: dict[Size, int] = {"tiny": 3, "ci": 400, "full": 3000}
_KNOWN = 5
_BATCH = 64
_SIDE = 8
_HELD_OUT = 4  # every fourth image of a digit is for testing


def make_digits(folder: Path, *, size: Size = "full", seed: int = 0, progress: bool = False) -> Made:
    """Train the network and lay out the images in `folder`, unless they are there already.

    scikit-learn's digits, 1,797 images of 8×8 pixels, come with that package. The network learns to tell 0 to
    4 under small rotations, shifts and changes of scale and contrast; `accuracy` is that on every fourth
    image of these, which it did not see. `folder/data/{train,test}/{5,…,9}` hold the other digits as PNG,
    again every fourth for testing: at least 130 of each to train on and 43 to test on.

    Raises InputError where scikit-learn is absent, or `folder` holds something else.
    """

    def make(partial: Path) -> float:
        images, labels = _load_digits()
        _write_images(partial / "data", images, labels)
        module, accuracy = _train(images, labels, size, seed, progress)
        save_vit(module, partial / "model")
        return accuracy

    return make_once(folder, {"kind": "digits", "size": size, "seed": seed}, make)


def _load_digits() -> tuple[Int[Tensor, "N 8 8"], Int[Tensor, " N"]]:
    """Return the images with pixels from 0 to 255, and the digits."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            "got no scikit-learn, expected it for its images of digits; run pip install "
            "'tangentlora[studies]'."
        ) from error
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.int64)
    return torch.from_numpy(pixels), torch.from_numpy(digits.target.astype(np.int64))


def _is_test(labels: Int[Tensor, " N"]) -> Tensor:
    """Mark every fourth example of each label, in the order of the set."""
    position = functional.one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0]
    return position % _HELD_OUT == 0


def _write_images(folder: Path, images: Int[Tensor, "N 8 8"], labels: Int[Tensor, " N"]) -> None:
    from PIL import Image

    for i, test in enumerate(_is_test(labels).tolist()):
        digit = int(labels[i])
        if digit >= _KNOWN:
            path = folder / ("test" if test else "train") / str(digit) / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i].numpy().astype(np.uint8)).save(path)


def _train(
    images: Int[Tensor, "N 8 8"], labels: Int[Tensor, " N"], size: Size, seed: int, progress: bool
) -> tuple[nn.Module, float]:
    """Return the trained network and its accuracy on the held-out images of the digits it knows."""
    pixels = (images.float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)
    known, test = labels < _KNOWN, _is_test(labels)
    seen, y = pixels[known & ~test], labels[known & ~test]
    module = small_vit(_KNOWN, image_size=_SIDE, seed=seed)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(seen), (_BATCH,), generator=generator)
        logits = module(pixel_values=_vary(seen[index], generator)).logits
        return functional.cross_entropy(logits, y[index])

    train(module, loss, steps=_STEPS[size], learning_rate=2e-3, seed=seed, desc="digits", progress=progress)
    with torch.no_grad():
        right = module(pixel_values=pixels[known & test]).logits.argmax(1) == labels[known & test]
    return module, float(right.double().mean())


def _vary(pixels: Float[Tensor, "B 3 S S"], generator: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """Rotate by up to 15°, scale by up to 15 %, shift by up to one pixel and add noise, at random."""
    n = len(pixels)

    def uniform(half: float) -> Float[Tensor, " B"]:
        return half * (2 * torch.rand(n, generator=generator) - 1)

    angle, scale = uniform(math.radians(15)), 1 + uniform(0.15)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    x, y = uniform(2 / _SIDE), uniform(2 / _SIDE)
    affine = torch.stack([cos, -sin, x, sin, cos, y], dim=1).view(n, 2, 3)
    grid = functional.affine_grid(affine, list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels + 1, grid, align_corners=False) - 1  # outside is black, −1
    return moved + 0.1 * torch.randn(moved.shape, generator=generator)
