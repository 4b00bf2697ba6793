"""The gradient M_t = ∇_{W_t} L of the real network's loss: one forward and one backward pass per batch.

With x_l the input and g_l the gradient of the loss at the output of a linear layer at row l, M = Σ_l g_l x_lᵀ
(chain rule), summed over all rows and all calls of the layer. An update δ of the layer acts on x as W does;
so M is also the gradient with respect to δ, whatever form the update has: added to W, computed beside it by a
hook, or by a LoRA layer around it. What is differentiated is the layer's whole output.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from tangentlora.blocks import Blocks
from tangentlora.errors import InputError
from tangentlora.models.network import Network
from tangentlora.models.targets import Target
from tangentlora.problem.losses import Loss
from tangentlora.progress import bar
from tangentlora.tangent.linearize import require_passes
from tangentlora.tangent.proof import prove_padding

_CHUNK = 4096  # rows of x and g that are held in float32 at a time, where the network's type is coarser


@dataclass(frozen=True, eq=False)
class WeightGradients:
    """M_t = ∇_{W_t} L (m,n) per target, the outputs (N,K) in the order of the inputs, and L itself.

    On the CPU, in float32 (float64 for a float64 network): one matrix of a weight's size per target.
    """

    gradients: Blocks
    outputs: Float[Tensor, "N K"]
    loss: float


def weight_gradients(
    network: Network,
    inputs: Sequence[Any],
    y: Shaped[Tensor, "N ..."],
    targets: Sequence[Target],
    loss: Loss,
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> WeightGradients:
    """Return M_t = ∇_{W_t} L, L = (1/N) Σ_i ℓ(f(x_i), y_i), at the network as it is now.

    It may stand inside `updated`, or have its update attached by hooks or LoRA layers. No weight is touched,
    and no gradient is kept for anything else. Calls of one layer add up, so a layer may be called on rows
    that belong to no single example. A weight that is used otherwise than by calling its module is not seen
    (`find_targets` refuses those it knows of). The loss and the sums are in float32; the network's own
    passes are in its own type.
    Raises InputError for an empty set, labels that do not fit, a network in training mode, a target that is
    never called, outputs that depend on no target, numbers that are not finite, and as `prove_padding`
    does.
    """
    require_passes(network, inputs, targets, batch_size)
    features = network.reader.encode(inputs)
    found: dict[int, Tensor] = {}
    total, padded = 0.0, False
    with (
        bar(len(features), "differentiating", "example", progress) as shown,
        torch.enable_grad(),
        _tapped(network.module, targets) as taps,
    ):
        for batch in network.batches(features, batch_size):
            outputs = network.outputs(batch)
            z = outputs.detach().to(torch.promote_types(outputs.dtype, torch.float32))
            if not found:
                taps.require_called()
                loss.check_labels(y, len(features), z.shape[1])
            _require_finite(z, "an output", network)
            labels = y[list(batch.index)].to(z.device)
            labels = labels.to(z.dtype) if labels.is_floating_point() else labels
            total += float(loss.value(z, labels).double().sum())
            padded = padded or prove_padding(network, features, batch.index, z)
            taps.differentiate(outputs, loss.gradient(z, labels).to(outputs.dtype))
            found.update(zip(batch.index, z.cpu(), strict=True))
            shown.update(len(batch.index))
    # The 1/N comes last: float16 would have lost it on the way.
    gradients = {
        t.name: taps.sums[t.name].div_(len(features)).cpu() if t.name in taps.sums else torch.zeros(t.shape)
        for t in targets
    }
    for name, M in gradients.items():
        _require_finite(M, f"a gradient of {name!r}", network)
    return WeightGradients(
        gradients, torch.stack([found[i] for i in range(len(features))]), total / len(features)
    )


class _Tap(torch.autograd.Function):
    """The identity on a layer's output, whose backward pass hands g and x over."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, x: Tensor, add: Callable[[Tensor, Tensor], None]) -> Any:
        ctx.save_for_backward(x)  # by reference; autograd objects if x is written into afterwards
        ctx.add, ctx.device = add, anchor.device
        return y.clone()  # what follows may write into it

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,), (x,) = grads, ctx.saved_tensors
        ctx.add(g, x)
        return g if ctx.needs_input_grad[0] else None, torch.zeros((), device=ctx.device), None, None


class _Taps:
    """The running sums Σ g xᵀ per target, and the leaf `anchor` that every tap hangs on.

    Asking for the gradient of the anchor visits every tap once, and nothing that no tap needs: whether the
    layer's output had a graph of its own, as behind trainable LoRA layers, makes no difference.
    """

    def __init__(self, targets: Sequence[Target], device: torch.device) -> None:
        self.sums: dict[str, Tensor] = {}
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.called: set[str] = set()
        self.parts: defaultdict[str, list[Target]] = defaultdict(list)
        for target in targets:
            self.parts[target.module].append(target)

    def add(self, module: str, g: Tensor, x: Tensor) -> None:
        """Add Σ_l g_l x_lᵀ to the sums of the targets in one module."""
        g, x = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        dtype = torch.promote_types(x.dtype, torch.float32)
        for target in self.parts[module]:
            rows = slice(None) if target.rows is None else slice(*target.rows)
            if target.name not in self.sums:
                self.sums[target.name] = torch.zeros(target.shape, dtype=dtype, device=x.device)
            for own, across in zip(torch.split(g[:, rows], _CHUNK), torch.split(x, _CHUNK), strict=True):
                self.sums[target.name].addmm_(own.to(dtype).T, across.to(dtype))

    def differentiate(self, outputs: Float[Tensor, "B K"], a: Float[Tensor, "B K"]) -> None:
        """Add this batch's Σ_ik a_ik ∇_W f_ik to the sums."""
        found: tuple[Tensor | None, ...] = (None,)
        if outputs.requires_grad:
            found = torch.autograd.grad(outputs, [self.anchor], a, allow_unused=True)
        if found[0] is None:
            raise InputError(
                f"got outputs that do not depend on {', '.join(self.parts)}, expected modules on the way "
                "from the inputs to the outputs: choose other --target-modules or --layers"
            )

    def require_called(self) -> None:
        for module in self.parts:
            if module not in self.called:
                raise InputError(
                    f"got the target {module!r}, which the network never calls for these outputs, expected "
                    "a module on the way from the inputs to the outputs: choose other --target-modules or "
                    "--layers"
                )


@contextmanager
def _tapped(module: nn.Module, targets: Sequence[Target]) -> Iterator[_Taps]:
    """Put a tap behind every target module, after the hooks that are there already."""
    taps = _Taps(targets, next(module.parameters()).device)

    def hook_of(name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            taps.called.add(name)
            x = next(iter((*args, *kwargs.values()))).detach()
            tapped: Tensor = _Tap.apply(output, taps.anchor, x, partial(taps.add, name))  # type: ignore[no-untyped-call]
            return tapped

        return hook

    handles = [
        module.get_submodule(name).register_forward_hook(hook_of(name), with_kwargs=True)
        for name in taps.parts
    ]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def _require_finite(numbers: Tensor, what: str, network: Network) -> None:
    if not torch.isfinite(numbers).all():
        raise InputError(
            f"got {what} that is not finite from {network.name!r}, expected numbers: check the weights, or "
            "load the network with --dtype float32"
        )
