"""Other ways to the per-example Jacobian of a masked language model, each library used as well as it can be.

All take the prompts' tensors in one batch and return the blocks J_ik,t of the weights that are named, dense,
as none of them has another form: per weight a list over the examples of (K,m,n), or from Opacus over the
outputs of (N,m,n), so that nothing is copied for the form's sake. Each is written from the library's
documentation, or in the case of the paper's code from a description of what it does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
Dense = dict[str, Sequence[Tensor]]


class Outputs(nn.Module):
    """The whole encoder and the head at the mask: its logits, or those of some `words`, (B,K).

    `C` (J,K) combines them.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        mask_id: int,
        words: Sequence[int] | None = None,
        C: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.mask_id, self.words, self.C = encoder, head, mask_id, words, C

    def forward(self, tensors: Tensors) -> Tensor:
        at_mask = (tensors["input_ids"] == self.mask_id).int().argmax(dim=1)
        hidden = self.encoder(**tensors).last_hidden_state
        outputs: Tensor = self.head(hidden[torch.arange(len(hidden)), at_mask])
        outputs = outputs if self.words is None else outputs[:, list(self.words)]
        return outputs if self.C is None else outputs @ self.C.T


def published(model: nn.Module, batch: Tensors, names: Sequence[str]) -> Dense:
    """Do as the paper's published code: matrix by matrix, jacrev over the whole batch on a fresh copy.

    Its example command has all 32 prompts in one batch. A copy of the network is made for each matrix, and a
    second one without weights to call it by. Its network has the head for the whole vocabulary.
    """
    found = {}
    for name in names:
        own = copy.deepcopy(model)
        stateless = copy.deepcopy(own).to("meta")
        tensors = (*own.named_parameters(remove_duplicate=False), *own.named_buffers())
        held = {key: value.detach() for key, value in tensors}
        weight = held.pop(name)

        def outputs(
            w: Tensor, name: str = name, held: dict[str, Tensor] = held, stateless: nn.Module = stateless
        ) -> Tensor:
            result: Tensor = torch.func.functional_call(stateless, {**held, name: w}, (batch,))
            return result

        found[name] = torch.func.jacrev(outputs)(weight).unbind(0)
    return found


def by_example(model: nn.Module, batch: Tensors, names: Sequence[str]) -> Dense:
    """Use jacrev as well as it can be: prompt by prompt, for all matrices at once, without copies."""
    weights = {name: model.get_parameter(name).detach() for name in names}
    rows = []
    for i in range(len(batch["input_ids"])):
        one = {key: value[i : i + 1] for key, value in batch.items()}

        def outputs(w: dict[str, Tensor], one: Tensors = one) -> Tensor:
            result: Tensor = torch.func.functional_call(model, w, (one,))
            return result[0]

        rows.append(torch.func.jacrev(outputs)(weights))
    return {name: [row[name] for row in rows] for name in names}


def opacus(model: nn.Module, batch: Tensors, names: Sequence[str], again: bool = False) -> Dense:
    """Take Opacus' gradients per sample: a forward and a backward pass for each output.

    Its hooks use up what they recorded of the forward pass. With `again` the records are put back from
    outside, which its interface does not offer, so that one forward pass serves all outputs.
    """
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    modules = [model.get_submodule(name.rpartition(".")[0]) for name in names]
    weights = [module.get_parameter("weight") for module in modules]
    for module, weight in zip(modules, weights, strict=True):
        module.training = True  # the hooks record in training mode only, which a linear layer does not feel
        weight.requires_grad_(True)
    hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
    found: list[list[Tensor]] = []
    try:
        outputs = model(batch)
        kept = [list(module.activations) for module in modules]
        for k in range(outputs.shape[1]):
            if k and not again:
                outputs = model(batch)
            elif k:
                for module, weight, activations in zip(modules, weights, kept, strict=True):
                    module.activations, weight._forward_counter = list(activations), 1  # type: ignore[assignment,attr-defined]
            outputs[:, k].sum().backward(retain_graph=again)
            found.append([weight.grad_sample for weight in weights])  # type: ignore[attr-defined]
            for weight in weights:
                weight.grad = weight.grad_sample = None  # type: ignore[attr-defined]
    finally:
        hooks.cleanup()
        for module, weight in zip(modules, weights, strict=True):
            module.training = False
            del module.activations
            weight.requires_grad_(False)
    return {name: [row[t] for row in found] for t, name in enumerate(names)}


def curvlinops(model: nn.Module, batch: Tensors, names: Sequence[str]) -> Dense:
    """Multiply curvlinops' transposed Jacobian of each prompt by the identity of its K outputs."""
    rows = []
    for i in range(len(batch["input_ids"])):
        rows.append(_transposed(model, {key: value[i : i + 1] for key, value in batch.items()}, names))
    return {name: [row[t][0] for row in rows] for t, name in enumerate(names)}


def curvlinops_batch(model: nn.Module, batch: Tensors, names: Sequence[str]) -> Dense:
    """Multiply curvlinops' transposed Jacobian of all prompts by the identity of their N·K outputs."""
    found = _transposed(model, batch, names)
    return {name: block.unbind(0) for name, block in zip(names, found, strict=True)}


def _transposed(model: nn.Module, batch: Tensors, names: Sequence[str]) -> list[Tensor]:
    from curvlinops import TransposedJacobianLinearOperator

    n = len(batch["input_ids"])
    k = model.head.decoder.out_features  # type: ignore[union-attr]
    weights = [model.get_parameter(name).requires_grad_(True) for name in names]
    try:
        operator = TransposedJacobianLinearOperator(
            model, weights, [(dict(batch), torch.zeros(n))], check_deterministic=False, num_data=n,
            batch_size_fn=lambda X: len(X["input_ids"]),
        )  # fmt: skip
        columns = operator @ [torch.eye(n * k).reshape(n, k, n * k)]
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    return [column.detach().movedim(-1, 0).unflatten(0, (n, k)) for column in columns]
