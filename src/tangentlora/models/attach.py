"""The network at W + δ without a touch of W: low-rank updates as hooks on the outputs of their modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tangentlora.blocks import Factors
from tangentlora.models.targets import Target
from tangentlora.models.update import require_fit


@contextmanager
def attached(module: nn.Module, targets: Sequence[Target], factors: Factors) -> Iterator[None]:
    """Inside the block every target adds its update to its output: y = x W_tᵀ + b + (x v_t) u_tᵀ.

    u_t is (m,r) and v_t (n,r). No weight changes, so that a δ far below the resolution of a half-precision W
    counts in full, as it does in PEFT's unmerged forward pass: update and sum are taken in float32, in
    float64 where W is, and rounded once to the dtype of the output. The targets of one fused weight share
    one sum. Gradients pass through, to the inputs and to factors that require them. Only
    calls of the module are seen: a network that reads the weight past its module does not notice δ.

    Raises `InputError` in the cases of :func:`tangentlora.models.update.require_fit`, before any hook is set.
    """
    require_fit(module, targets, factors)
    parts: dict[str, list[Target]] = {}
    for target in targets:
        parts.setdefault(target.module, []).append(target)
    handles = [
        module.get_submodule(name).register_forward_hook(
            _adding(module.get_submodule(name), fused, factors), with_kwargs=True
        )
        for name, fused in parts.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(owner: nn.Module, parts: Sequence[Target], factors: Factors) -> Callable[..., Tensor]:
    """Return the hook that adds Σ over the parts of (x v) uᵀ, each in its own range of the outputs."""
    weight = owner.get_parameter("weight")
    dtype = torch.promote_types(weight.dtype, torch.float32)
    updates = []
    for target in parts:
        # Cast first: not every device knows float64.
        u, v = (factor.to(dtype).to(weight.device) for factor in factors[target.name])
        updates.append((target.rows, u, v))

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x: Tensor = next(iter((*args, *kwargs.values())))
        total = output.to(dtype)
        for rows, u, v in updates:
            added = (x.to(dtype) @ v) @ u.T
            if rows is not None:
                added = functional.pad(added, (rows[0], output.shape[-1] - rows[1]))
            total = total + added
        return total.to(output.dtype)

    return hook
