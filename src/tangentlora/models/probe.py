"""A linear probe: fit the last linear layer of a new classification head to the frozen features."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.classification import ClassificationReader
from tangentlora.models.load import fingerprint
from tangentlora.models.network import Network


def fit_linear_probe(
    network: Network, inputs: Sequence[Any], labels: Sequence[int], *, l2: float = 1e-2, batch_size: int = 32
) -> Network:
    """Return a copy of the network whose last linear layer is a multinomial logistic regression.

    min over (W, b) of (1/N) Σ_i CE(W φ_i + b, y_i) + (l2/2) ‖W‖²_F, where the features φ_i ∈ R^H, the inputs
    of that layer, are centred (if it has a bias) and scaled to a mean square norm of 1, so that `l2` means
    the same for every network; a very small one saturates the loss and leaves nothing for the adapted
    weights to learn. A layer that is applied to many positions, of which the outputs are a weighted sum,
    gets the same weighted sum of its inputs as features. L-BFGS in float64; nothing is random.

    Raises `InputError` when the readout is no classification head, the head does not end in a linear layer,
    `labels` are not N indices of its outputs, or `l2` is not positive and finite: then there is no minimum.
    """
    if not 0 < l2 < np.inf:
        raise InputError(f"got l2={l2}, expected a positive number; leave it out.")
    reader = network.reader
    if not isinstance(reader, ClassificationReader):
        raise InputError(
            f"got the readout {type(reader).__name__}, expected a classification head to fit; "
            "use ClassificationHead with init='probe'."
        )
    K = reader.readout.num_labels
    if len(labels) != len(inputs) or not len(inputs) or not set(labels) <= set(range(K)):
        raise InputError(
            f"got {len(labels)} labels for {len(inputs)} examples and {K} outputs, expected one index below "
            f"{K} for each; check the data's labels."
        )
    name, layer = _last_linear(network.module, K)
    phi = _features(network, layer, inputs, batch_size)
    W, b = _logistic_regression(phi, np.asarray(labels), K, l2, layer.bias is not None)
    # The probe is a new network: the old one, and what was computed from it, stay as they were.
    module = copy.deepcopy(network.module)
    fitted = module.get_submodule(name)
    with torch.no_grad():
        fitted.get_parameter("weight").copy_(torch.from_numpy(W))
        if layer.bias is not None:
            fitted.get_parameter("bias").copy_(torch.from_numpy(b))
    return replace(
        network, module=module, reader=replace(reader, module=module), fingerprint=fingerprint(module)
    )


def _last_linear(module: nn.Module, K: int) -> tuple[str, nn.Linear]:
    """Return the last linear layer with K outputs outside the pretrained parts."""
    from transformers import PreTrainedModel

    heads = [name for name, child in module.named_children() if not isinstance(child, PreTrainedModel)]
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if name.split(".")[0] in heads and type(layer) is nn.Linear and layer.out_features == K
    ]
    if not layers:
        raise InputError(
            f"got the architecture {type(module).__name__}, expected a head that ends in a linear "
            f"layer of {K} outputs; choose another network or a checkpoint with a trained head."
        )
    return layers[-1]


@contextmanager
def _tapped(layer: nn.Linear) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record each call's input and its output as a new leaf of the autograd graph."""
    calls: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        calls.append((args[0].detach(), leaf))
        return leaf

    handle = layer.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def _features(
    network: Network, layer: nn.Linear, inputs: Sequence[Any], batch_size: int
) -> Float[NDArray[np.float64], "N H"]:
    """Return φ_i with f(x_i) = W φ_i + b: the layer's input, summed over positions as its output is."""
    features = network.reader.encode(inputs)
    phi = torch.zeros(len(features), layer.in_features, dtype=torch.float64)
    for batch in network.batches(features, batch_size):
        with _tapped(layer) as calls:
            outputs = network.outputs(batch)
        leaves = [leaf for _, leaf in calls]
        summed = torch.zeros(len(outputs), layer.in_features, device=outputs.device, dtype=torch.float64)
        for (x, _), gradient in zip(calls, torch.autograd.grad(outputs[:, 0].sum(), leaves), strict=True):
            weights = gradient[..., 0].double().reshape(len(outputs), -1, 1)
            summed += (weights * x.double().reshape(len(outputs), -1, layer.in_features)).sum(dim=1)
        again = summed @ layer.weight.double().T + (0 if layer.bias is None else layer.bias.double())
        error, scale = (again - outputs.detach()).abs().max(), outputs.detach().abs().max()
        if not bool(error <= 1e-3 * max(1.0, float(scale))):
            raise InputError(
                f"got the architecture {type(network.module).__name__}, whose outputs are not linear in its "
                "last linear layer, expected a linear head; choose another network."
            )
        phi[list(batch.index)] = summed.cpu()
    return phi.numpy()


def _logistic_regression(
    phi: Float[NDArray[np.float64], "N H"], y: Int[NDArray[np.int64], " N"], K: int, l2: float, bias: bool
) -> tuple[Float[NDArray[np.float64], "K H"], Float[NDArray[np.float64], " K"]]:
    """Return W (K,H) and b (K,) of the problem in :func:`fit_linear_probe`, in the units of `phi`."""
    N, H = phi.shape
    centre = phi.mean(axis=0) if bias else np.zeros(H)
    scale = np.sqrt(((phi - centre) ** 2).sum(axis=1).mean()) or 1.0
    x = (phi - centre) / scale
    hot = np.eye(K)[y]

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        W, b = flat[: K * H].reshape(K, H), flat[K * H :]
        logp = log_softmax(x @ W.T + b, axis=1)
        a = (np.exp(logp) - hot) / N
        gradient_b = a.sum(axis=0) if bias else np.zeros(K)
        value = -(hot * logp).sum() / N + l2 / 2 * (W**2).sum()
        return float(value), np.concatenate([(a.T @ x + l2 * W).ravel(), gradient_b])

    options = {"maxiter": 10_000, "maxfun": 20_000, "gtol": 1e-9, "ftol": 0.0}
    found = minimize(objective, np.zeros(K * H + K), jac=True, method="L-BFGS-B", options=options).x
    W = found[: K * H].reshape(K, H) / scale
    return W, found[K * H :] - W @ centre
