"""Which modules are plain matrices: y = x Wᵀ + b, stored as W (Linear) or as Wᵀ (Conv1D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_PLAIN = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""Types that hold a weight as it is; eight-bit floats stand for numbers that a scale of their own makes."""
_ROWS = 32


def is_conv1d(child: nn.Module) -> bool:
    """Say whether this is GPT-2's Conv1D or a class made from it, which stores its weight as (in, out)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(child, Conv1D)


def is_plain(child: nn.Module) -> bool:
    """Say whether a module is a Linear or Conv1D, or made from one, and computes x Wᵀ + b of its weight.

    Subclasses such as Falcon's are adapted by PEFT as Linear is. One with a forward pass of its own is run
    once and held against x Wᵀ + b: quantised layers and layers that scale or round are none.
    """
    from transformers.pytorch_utils import Conv1D

    base = next((kind for kind in (nn.Linear, Conv1D) if isinstance(child, kind)), None)
    if base is None or not isinstance(weight := getattr(child, "weight", None), Tensor):
        return False
    if weight.dim() != 2 or weight.dtype not in _PLAIN:
        return False
    return type(child).forward is base.forward or _agrees(child, weight, base is Conv1D)


@torch.no_grad()
def _agrees(child: nn.Module, weight: Tensor, transposed: bool) -> bool:
    """Say whether the forward pass gives x Wᵀ + b on some rows, up to the rounding of the weight's type.

    Rounding has no direction: together the outputs must be as large as expected, more exactly than each.
    """
    W = weight.T if transposed else weight
    m, n = W.shape
    x = torch.randn(_ROWS, n, generator=torch.Generator().manual_seed(0)).to(weight)
    bias = getattr(child, "bias", None)
    try:
        found = child.forward(x)
    except Exception:  # a forward pass that takes something else is none of a plain matrix
        return False
    if not isinstance(found, Tensor) or found.shape != (_ROWS, m):
        return False
    wide = torch.promote_types(weight.dtype, torch.float32)
    b = torch.zeros(m).to(W).to(wide) if bias is None else bias.to(wide)
    expected = functional.linear(x.to(wide), W.to(wide), b)
    size = functional.linear(x.to(wide).abs(), W.to(wide).abs(), b.abs())
    eps, found = torch.finfo(weight.dtype).eps, found.to(wide)
    scale = float((found * expected).sum() / expected.square().sum().clamp_min(torch.finfo(wide).tiny))
    near = (found - expected).abs() <= 8 * eps * size
    unbiased = not bool(expected.any()) or abs(scale - 1) <= 8 * eps / expected.numel() ** 0.5
    return bool(near.all()) and unbiased
