"""Layer inputs and output-gradients of a batch: one forward pass, and backward passes down to the targets.

With x_l the input and g_lk the gradient of Σ_i f_k(x_i) at the output of a linear layer at token l, the
Jacobian of example i is J_ik = Σ_{l∈i} g_lk x_lᵀ (chain rule). That holds only while rows of the layer belong
to one example each, so every call is checked, and `proof` holds one example against autograd's own gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.network import Batch, Network
from tangentlora.models.targets import Target
from tangentlora.tangent.centred import helmert

_PROOF_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Relative error allowed against autograd by the weights' type, 5e-2 in coarser ones; a wrong Jacobian is off
by O(1). A float64 Llama computes its norms in float32."""


@dataclass(frozen=True, eq=False)
class Capture:
    """Outputs of a batch, and the input x (B,L,n) and output-gradients g (B,J,L,m) of each target.

    These are of the J = K outputs, or of their J = K−1 contrasts. L counts the rows of one example over all
    calls of the module; it may differ from target to target.
    """

    outputs: Float[Tensor, "B K"]
    x: dict[str, Float[Tensor, "B L n"]]
    g: dict[str, Float[Tensor, "B J L m"]]


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a target module: its input, and its output as the node whose gradient is asked for."""

    x: Tensor
    y: Tensor


def capture(
    network: Network, batch: Batch, targets: Sequence[Target], *, centred: bool = False, prove: bool = False
) -> Capture:
    """Run one forward and K truncated backward passes and return what the Jacobian is made of.

    If `centred`, K−1 backward passes give the gradients of the contrasts Cf of the outputs in place of f.
    With `prove`, Σ_ij a_ij J_ij for random a is compared with autograd's gradient of the same sum of outputs
    with respect to the weights themselves, which also finds weights that are used without calling their
    module. Raises InputError where a module is not called, is called with rows that belong to no single
    example, or has no path to the outputs, for a single output to be centred, where that comparison fails,
    and where a number is not finite.
    """
    names = list(dict.fromkeys(target.module for target in targets))
    with torch.enable_grad(), _own_weights(network.module, names) as weights, _differentiable(weights, prove):
        with _recording(network.module, names) as calls:
            outputs = network.outputs(batch)
        for name in names:
            _check_calls(name, calls[name], len(batch.index))
        if not torch.isfinite(outputs).all():
            raise InputError(
                f"got outputs that are not finite from {network.name!r}, expected numbers: "
                "check the weights and the inputs"
            )
        if not outputs.requires_grad:
            raise InputError(
                f"got outputs that do not depend on {', '.join(names)}, expected modules on the way from the "
                "inputs to the outputs: choose other --target-modules or --layers"
            )
        D = _directions(outputs, centred)
        x, g = _differentiate(outputs, D, calls, len(batch.index))
        if prove:
            a = torch.randn(len(outputs), len(D), generator=torch.Generator().manual_seed(0)).to(outputs)
            proof = torch.autograd.grad(outputs, weights, a @ D, materialize_grads=True)
    result = Capture(
        outputs.detach(),
        {t.name: x[t.module] for t in targets},
        {t.name: g[t.module] if t.rows is None else g[t.module][..., slice(*t.rows)] for t in targets},
    )
    if prove:
        _compare(result, a, dict(zip(names, proof, strict=True)), targets)
    return result


@contextmanager
def _own_weights(module: nn.Module, names: Sequence[str]) -> Iterator[list[nn.Parameter]]:
    """Give the weights of these modules; one that another module shares stands apart inside the block.

    An update beside a tied `lm_head` is none of the embedding, so that autograd must not follow it there. The
    numbers are the same memory.
    """
    owners = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    children = [module.get_submodule(name) for name in names]
    before = [child.get_parameter("weight") for child in children]
    try:
        for child, weight in zip(children, before, strict=True):
            if owners[id(weight)] > 1:
                child.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
        yield [child.get_parameter("weight") for child in children]
    finally:
        for child, weight in zip(children, before, strict=True):
            child.weight = weight


@contextmanager
def _differentiable(weights: Sequence[Tensor], wanted: bool) -> Iterator[None]:
    """Let autograd follow the weights, or not, and leave them as they were."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(wanted)
        yield
    finally:
        for weight, state in zip(weights, before, strict=True):
            weight.requires_grad_(state)


@contextmanager
def _recording(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[_Call]]]:
    """Record every call of the named modules; the graph starts at the first recorded output."""
    calls: dict[str, list[_Call]] = {name: [] for name in names}

    def hook_of(record: list[_Call]) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            x = next(iter((*args, *kwargs.values())))
            y = output if output.requires_grad else output.detach().requires_grad_(True)
            record.append(_Call(x.detach(), y))
            return y.clone()  # what follows may write into its input; the record must stay as it was

        return hook

    handles = [
        module.get_submodule(name).register_forward_hook(hook_of(calls[name]), with_kwargs=True)
        for name in names
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _check_calls(name: str, calls: Sequence[_Call], batch_size: int) -> None:
    if not calls:
        raise InputError(
            f"got the target {name!r}, which the network never calls for these outputs, expected a module on "
            "the way from the inputs to the outputs: choose other --target-modules or --layers"
        )
    for call in calls:
        if batch_size > 1 and (call.x.dim() < 2 or call.x.shape[0] != batch_size):
            raise InputError(
                f"got the target {name!r} called with an input of shape {tuple(call.x.shape)} for a batch "
                f"of {batch_size}, expected rows that belong to one example each: use --batch-size 1, which "
                "is exact, or other --target-modules"
            )


def _directions(outputs: Float[Tensor, "B K"], centred: bool) -> Float[Tensor, "J K"]:
    """Return the combinations of the outputs that are differentiated: each of them, or the contrasts."""
    k = outputs.shape[1]
    if not centred:
        return torch.eye(k).to(outputs)
    if k == 1:
        raise InputError(
            "got one output to be centred, expected at least two: an output less its mean is zero, so "
            "linearise with centred=False"
        )
    return helmert(k).to(outputs)


def _differentiate(
    outputs: Float[Tensor, "B K"],
    D: Float[Tensor, "J K"],
    calls: Mapping[str, Sequence[_Call]],
    batch_size: int,
) -> tuple[dict[str, Float[Tensor, "B L n"]], dict[str, Float[Tensor, "B J L m"]]]:
    """Return x and g of the outputs z ↦ D z per module, the rows of all its calls one after the other."""
    recorded = [call.y for own in calls.values() for call in own]
    per_output = [
        torch.autograd.grad(
            outputs, recorded, row.expand_as(outputs), retain_graph=True, materialize_grads=True
        )
        for row in D
    ]
    per_call = iter(
        torch.stack([gradient.reshape(batch_size, -1, gradient.shape[-1]) for gradient in gradients], dim=1)
        for gradients in zip(*per_output, strict=True)
    )
    x_of, g_of = {}, {}
    for name, own in calls.items():
        x = torch.cat([call.x.reshape(batch_size, -1, call.x.shape[-1]) for call in own], dim=1)
        g = torch.cat([next(per_call) for _ in own], dim=2)
        if not (torch.isfinite(x).all() and torch.isfinite(g).all()):
            raise InputError(
                f"got inputs or gradients that are not finite at {name!r}, expected numbers: "
                "check the weights, or load the network with --dtype float32"
            )
        x_of[name], g_of[name] = x, g
    return x_of, g_of


def _compare(
    result: Capture,
    a: Float[Tensor, "B J"],
    proof: Mapping[str, Tensor],
    targets: Sequence[Target],
) -> None:
    """Hold Σ_ij a_ij J_ij against autograd's gradients; a block that is zero but for rounding passes."""
    largest = max(float(torch.linalg.norm(reference.float())) for reference in proof.values())
    for target in targets:
        g, x = (
            of[target.name].to(a.dtype) for of in (result.g, result.x)
        )  # outputs may be finer than layers
        ours = torch.einsum("bk,bklm,bln->mn", a, g, x)
        reference = proof[target.module].T if target.transposed else proof[target.module]
        reference = reference if target.rows is None else reference[slice(*target.rows)]
        tolerance = _PROOF_TOLERANCE.get(reference.dtype, 5e-2)
        rounding = 10 * torch.finfo(reference.dtype).eps * largest
        error = float(torch.linalg.norm((ours - reference).float()))
        scale = float(torch.linalg.norm(reference.float()))
        if error > tolerance * scale + rounding:
            raise InputError(
                f"got a Jacobian of {target.name!r} whose error against autograd's is {error:.1e} at a norm "
                f"of {scale:.1e}, expected agreement: its weight is used elsewhere too or the network mixes "
                "examples, so choose other --target-modules or --batch-size 1"
            )
