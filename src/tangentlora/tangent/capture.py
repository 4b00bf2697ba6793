"""Layer inputs and output-gradients of one batch: one forward pass and K backward passes that stop at the first target.

With x_l the input and g_lk the gradient of Σ_i f_k(x_i) at the output of a linear layer at token l, the Jacobian of
example i is J_ik = Σ_{l∈i} g_lk x_lᵀ (chain rule). That holds only while rows of the layer belong to one example
each, so every call is checked, and the first batch is compared with autograd's own weight gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.network import Batch, Network
from tangentlora.models.targets import Target

_PROOF_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # coarser types: 5e-2; a wrong Jacobian is off by O(1)


@dataclass(frozen=True)
class Capture:
    """Outputs of a batch, and the input x (B,L,n) and output-gradients g (B,K,L,m) of each target."""

    outputs: Float[Tensor, "B K"]
    x: dict[str, Float[Tensor, "B L n"]]
    g: dict[str, Float[Tensor, "B K L m"]]


def capture(network: Network, batch: Batch, targets: Sequence[Target], *, prove: bool = False) -> Capture:
    """Run one forward and K truncated backward passes and return what the Jacobian is made of.

    With `prove`, Σ_ik a_ik J_ik for random a is compared with autograd's gradient of Σ_ik a_ik f_ik with respect to
    the weights themselves, which also finds weights that are used other than by calling their module.
    Raises InputError where a module is not called, is called with rows that belong to no single example, or where
    that comparison fails, and where outputs or gradients are not finite.
    """
    names = list(dict.fromkeys(target.module for target in targets))
    weights = [network.module.get_submodule(name).get_parameter("weight") for name in names]
    with torch.enable_grad(), _requires_grad(weights if prove else []):
        with _recording(network.module, names) as calls:
            outputs = network.outputs(batch)
        for name in names:
            _check_calls(name, calls[name], len(batch.index))
        if not torch.isfinite(outputs).all():
            raise InputError(
                f"got outputs that are not finite from {network.name!r}, expected numbers: check the weights and inputs"
            )
        gradients = _output_gradients(outputs, [y for name in names for _, y in calls[name]])
        proof = _weight_gradients(outputs, weights) if prove else None
    result = _assemble(outputs, calls, gradients, targets, len(batch.index))
    if proof is not None:
        _compare(network.module, result, dict(zip(names, proof[1], strict=True)), proof[0], targets)
    return result


@contextmanager
def _requires_grad(weights: Sequence[Tensor]) -> Iterator[None]:
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)


@contextmanager
def _recording(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Record the input and output of every call; the graph starts at the first recorded output."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}

    def hook_of(name: str):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            recorded = output if output.requires_grad else output.detach().requires_grad_(True)
            calls[name].append((args[0].detach(), recorded))
            return recorded.clone()  # what follows may write into its input; the record must stay as it was

        return hook

    handles = [module.get_submodule(name).register_forward_hook(hook_of(name)) for name in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _check_calls(name: str, calls: list[tuple[Tensor, Tensor]], batch: int) -> None:
    if not calls:
        raise InputError(
            f"got the target {name!r}, which the network never calls for these outputs, expected a module on the way "
            f"from the inputs to the outputs: choose other --target-modules or --layers"
        )
    for x, _ in calls:
        if batch > 1 and (x.dim() < 2 or x.shape[0] != batch):
            raise InputError(
                f"got the target {name!r} called with an input of shape {tuple(x.shape)} for a batch of {batch}, "
                f"expected rows that belong to one example each: use --batch-size 1, which is exact, or other targets"
            )


def _output_gradients(outputs: Tensor, recorded: list[Tensor]) -> list[tuple[Tensor, ...]]:
    return [
        tuple(
            torch.zeros_like(y) if grad is None else grad
            for y, grad in zip(
                recorded,
                torch.autograd.grad(outputs[:, k].sum(), recorded, retain_graph=True, allow_unused=True),
                strict=True,
            )
        )
        for k in range(outputs.shape[1])
    ]


def _weight_gradients(outputs: Tensor, weights: list[Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(outputs.shape, generator=generator, dtype=torch.float32).to(outputs)
    return a, torch.autograd.grad((a * outputs).sum(), weights, allow_unused=True)


def _assemble(
    outputs: Tensor,
    calls: dict[str, list[tuple[Tensor, Tensor]]],
    gradients: list[tuple[Tensor, ...]],
    targets: Sequence[Target],
    batch: int,
) -> Capture:
    x_of, g_of, position = {}, {}, 0
    for name, records in calls.items():
        x_of[name] = torch.cat([x.reshape(batch, -1, x.shape[-1]) for x, _ in records], dim=1)
        own = [g[position : position + len(records)] for g in gradients]
        position += len(records)
        g_of[name] = torch.stack(
            [torch.cat([g.reshape(batch, -1, g.shape[-1]) for g in per_call], dim=1) for per_call in own], dim=1
        )
        if not torch.isfinite(g_of[name]).all():
            raise InputError(
                f"got gradients that are not finite at {name!r}, expected numbers: check the weights, or load the model in float32"
            )
    return Capture(
        outputs.detach(),
        {target.name: x_of[target.module] for target in targets},
        {
            target.name: g_of[target.module][..., slice(*target.rows) if target.rows else slice(None)]
            for target in targets
        },
    )


def _compare(
    module: nn.Module, result: Capture, proof: dict[str, Tensor | None], a: Tensor, targets: Sequence[Target]
) -> None:
    for target in targets:
        reference = proof[target.module]
        ours = torch.einsum("bk,bklm,bln->mn", a, result.g[target.name], result.x[target.name])
        if reference is None:
            reference = torch.zeros_like(module.get_submodule(target.module).get_parameter("weight"))
        reference = reference.T if target.transposed else reference
        reference = reference[slice(*target.rows)] if target.rows else reference
        error = torch.linalg.norm((ours - reference).double())
        scale = torch.linalg.norm(reference.double())
        if error > _PROOF_TOLERANCE.get(a.dtype, 5e-2) * scale:
            raise InputError(
                f"got a Jacobian of {target.name!r} that differs from autograd's by {float(error / scale):.1e}, expected "
                "agreement: its weight is used elsewhere too or mixes examples, so choose other --target-modules or --batch-size 1"
            )
