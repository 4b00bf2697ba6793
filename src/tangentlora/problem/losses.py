"""Losses ℓ(z, y) of one example: value, gradient, Hessian product, conjugate, and their constants.

Every loss works on all examples at once: z is (N,K) and the values are (N,). Labels y are class numbers (N,)
for cross-entropy, ±1 (N,) for the logistic loss and vectors (N,K) for the squared loss.
Sources: theory as in Jang, Lee, Ryu 2024, section 2; the conjugates are derived in docs/theory.md.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tangentlora.errors import InputError
from tangentlora.tangent.centred import helmert

_DOMAIN = 1e-12  # how far outside its domain a dual point may be by rounding and still count as on the border


class Loss(abc.ABC):
    """A convex, smooth loss of one example's outputs."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The loss's name in run folders and on the command line."""

    @property
    @abc.abstractmethod
    def smoothness(self) -> float:
        """L with ∇²ℓ ⪯ L·I."""

    @property
    @abc.abstractmethod
    def lipschitz(self) -> float:
        """G with |ℓ(z) − ℓ(z')| ≤ G·‖z − z'‖₂; infinite where there is none."""

    @abc.abstractmethod
    def value(self, z: Float[Tensor, "N K"], y: Shaped[Tensor, "N ..."]) -> Float[Tensor, " N"]:
        """Return ℓ(z_i, y_i), (N,)."""

    @abc.abstractmethod
    def gradient(self, z: Float[Tensor, "N K"], y: Shaped[Tensor, "N ..."]) -> Float[Tensor, "N K"]:
        """Return ∇ℓ(z_i, y_i), (N,K)."""

    @abc.abstractmethod
    def hessian_product(
        self, z: Float[Tensor, "N K"], y: Shaped[Tensor, "N ..."], d: Float[Tensor, "N K"]
    ) -> Float[Tensor, "N K"]:
        """Return ∇²ℓ(z_i, y_i) d_i, (N,K)."""

    @abc.abstractmethod
    def conjugate(self, a: Float[Tensor, "N K"], y: Shaped[Tensor, "N ..."]) -> Float[Tensor, " N"]:
        """Return ℓ*(a_i) = sup_z ⟨a_i, z⟩ − ℓ(z, y_i), (N,); +∞ outside its domain."""

    @abc.abstractmethod
    def check_labels(self, y: Shaped[Tensor, "N ..."], n_examples: int, n_outputs: int) -> None:
        """Raise InputError unless y are labels for outputs (N,K)."""

    def contrasts(self, n_outputs: int) -> Float[Tensor, "J K"] | None:
        """Return an orthonormal C, (J,K), with ℓ(z) = ℓ(CᵀCz) for all z, or None where all outputs matter."""
        return None


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy ℓ(z, y) = −log softmax(z)_y; ℓ*(a) = Σ_k q_k log q_k, q = a + e_y in the simplex.

    K ≥ 2.
    """

    name = "cross_entropy"
    smoothness = 0.5
    lipschitz = math.sqrt(2.0)

    def value(self, z: Float[Tensor, "N K"], y: Shaped[Tensor, " N"]) -> Float[Tensor, " N"]:
        return torch.nn.functional.cross_entropy(z, y, reduction="none")

    def gradient(self, z: Float[Tensor, "N K"], y: Shaped[Tensor, " N"]) -> Float[Tensor, "N K"]:
        return torch.softmax(z, dim=1) - _one_hot(y, z)

    def hessian_product(
        self, z: Float[Tensor, "N K"], y: Shaped[Tensor, " N"], d: Float[Tensor, "N K"]
    ) -> Float[Tensor, "N K"]:
        p = torch.softmax(z, dim=1)
        return p * (d - (p * d).sum(1, keepdim=True))

    def conjugate(self, a: Float[Tensor, "N K"], y: Shaped[Tensor, " N"]) -> Float[Tensor, " N"]:
        q = a + _one_hot(y, a)
        inside = (q >= -_DOMAIN).all(1) & ((q.sum(1) - 1).abs() <= _DOMAIN)
        q = q.clamp(min=0.0)
        return torch.where(inside, torch.xlogy(q, q).sum(1), torch.inf)

    def check_labels(self, y: Shaped[Tensor, " ..."], n_examples: int, n_outputs: int) -> None:
        _check_shape(y, (n_examples,))
        if n_outputs < 2:
            raise InputError("got one output for cross-entropy, expected at least two: use the logistic loss")
        whole = not (y.is_floating_point() or y.is_complex())
        bad = y[(y < 0) | (y >= n_outputs)] if whole else y
        if len(bad):
            raise InputError(
                f"got the label {bad[0].item()} for {n_outputs} outputs, expected whole numbers from 0 to "
                f"{n_outputs - 1}: correct the labels or name all classes of the task"
            )

    def contrasts(self, n_outputs: int) -> Float[Tensor, "J K"]:
        """Return the Helmert contrasts (K−1,K): softmax ignores a common shift of the logits."""
        return helmert(n_outputs)


@dataclass(frozen=True)
class Logistic(Loss):
    """Logistic loss ℓ(z, y) = log(1 + e^{−yz}), y = ±1; ℓ*(a) = q log q + (1−q) log(1−q), q = −ya in [0, 1].

    K = 1.
    """

    name = "logistic"
    smoothness = 0.25
    lipschitz = 1.0

    def value(self, z: Float[Tensor, "N 1"], y: Shaped[Tensor, " N"]) -> Float[Tensor, " N"]:
        return -torch.nn.functional.logsigmoid(_signs(y, z) * z)[:, 0]  # softplus drops e^{−x} for x > 20

    def gradient(self, z: Float[Tensor, "N 1"], y: Shaped[Tensor, " N"]) -> Float[Tensor, "N 1"]:
        signs = _signs(y, z)
        return -signs * torch.sigmoid(-signs * z)

    def hessian_product(
        self, z: Float[Tensor, "N 1"], y: Shaped[Tensor, " N"], d: Float[Tensor, "N 1"]
    ) -> Float[Tensor, "N 1"]:
        return torch.sigmoid(z) * torch.sigmoid(-z) * d

    def conjugate(self, a: Float[Tensor, "N 1"], y: Shaped[Tensor, " N"]) -> Float[Tensor, " N"]:
        q = (-_signs(y, a) * a)[:, 0]
        inside = (q >= -_DOMAIN) & (q <= 1 + _DOMAIN)
        q = q.clamp(0.0, 1.0)
        return torch.where(inside, torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q), torch.inf)

    def check_labels(self, y: Shaped[Tensor, " ..."], n_examples: int, n_outputs: int) -> None:
        _check_shape(y, (n_examples,))
        if n_outputs != 1:
            raise InputError(
                f"got {n_outputs} outputs for the logistic loss, expected one: use cross-entropy instead"
            )
        if not bool(((y == 1) | (y == -1)).all()):
            raise InputError(
                "got labels other than −1 and 1, expected those two for the logistic loss: map them first"
            )


@dataclass(frozen=True)
class Squared(Loss):
    """Squared loss ℓ(z, y) = ½‖z − y‖²; ℓ*(a) = ½‖a‖² + ⟨a, y⟩."""

    name = "squared"
    smoothness = 1.0
    lipschitz = math.inf

    def value(self, z: Float[Tensor, "N K"], y: Shaped[Tensor, "N K"]) -> Float[Tensor, " N"]:
        return 0.5 * (z - y).square().sum(1)

    def gradient(self, z: Float[Tensor, "N K"], y: Shaped[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return z - y

    def hessian_product(
        self, z: Float[Tensor, "N K"], y: Shaped[Tensor, "N K"], d: Float[Tensor, "N K"]
    ) -> Float[Tensor, "N K"]:
        return d

    def conjugate(self, a: Float[Tensor, "N K"], y: Shaped[Tensor, "N K"]) -> Float[Tensor, " N"]:
        return 0.5 * a.square().sum(1) + (a * y).sum(1)

    def check_labels(self, y: Shaped[Tensor, " ..."], n_examples: int, n_outputs: int) -> None:
        _check_shape(y, (n_examples, n_outputs))
        if not bool(torch.isfinite(y).all()):
            raise InputError("got a target that is not finite, expected numbers: remove or mend that example")


@dataclass(frozen=True)
class Likelihood(Loss):
    """Negative log-likelihood ℓ(z, y) = −z of an output that is one already; ℓ*(a) = 0 at a = −1, else +∞.

    K = 1, and y is 0 for every example: there is nothing to choose. On the real network z ≤ 0 bounds the loss
    from below. A linearised network knows no such bound: L̂(δ) = L̂(0) + Σ_t ⟨M_t, δ_t⟩, so L̂ + λ Σ_t ‖δ_t‖_*
    has the minimiser 0 where λ ≥ max_t ‖M_t‖₂, and none elsewhere.
    """

    name = "likelihood"
    smoothness = 0.0
    lipschitz = 1.0

    def value(self, z: Float[Tensor, "N 1"], y: Shaped[Tensor, " N"]) -> Float[Tensor, " N"]:
        return -z[:, 0]

    def gradient(self, z: Float[Tensor, "N 1"], y: Shaped[Tensor, " N"]) -> Float[Tensor, "N 1"]:
        return -torch.ones_like(z)

    def hessian_product(
        self, z: Float[Tensor, "N 1"], y: Shaped[Tensor, " N"], d: Float[Tensor, "N 1"]
    ) -> Float[Tensor, "N 1"]:
        return torch.zeros_like(d)

    def conjugate(self, a: Float[Tensor, "N 1"], y: Shaped[Tensor, " N"]) -> Float[Tensor, " N"]:
        return torch.where(((a + 1).abs() <= _DOMAIN)[:, 0], 0.0, torch.inf).to(a)

    def check_labels(self, y: Shaped[Tensor, " ..."], n_examples: int, n_outputs: int) -> None:
        _check_shape(y, (n_examples,))
        if n_outputs != 1:
            raise InputError(
                f"got {n_outputs} outputs for the likelihood, expected one: use cross-entropy for classes"
            )
        if bool((y != 0).any()):
            raise InputError(
                "got labels other than 0 for the likelihood, expected only that, since it knows no classes: "
                "use cross-entropy for classes, or pass zeros"
            )


@dataclass(frozen=True, eq=False)
class Contrasted(Loss):
    """A loss seen through orthonormal contrasts C (J,K) that lose nothing: ℓ_C(ζ, y) = ℓ(Cᵀζ, y), ζ = Cz."""

    loss: Loss
    C: Float[Tensor, "J K"]

    @property
    def name(self) -> str:
        return self.loss.name

    @property
    def smoothness(self) -> float:
        return self.loss.smoothness

    @property
    def lipschitz(self) -> float:
        return self.loss.lipschitz

    def value(self, z: Float[Tensor, "N J"], y: Shaped[Tensor, "N ..."]) -> Float[Tensor, " N"]:
        return self.loss.value(z @ self.C, y)

    def gradient(self, z: Float[Tensor, "N J"], y: Shaped[Tensor, "N ..."]) -> Float[Tensor, "N J"]:
        return self.loss.gradient(z @ self.C, y) @ self.C.T

    def hessian_product(
        self, z: Float[Tensor, "N J"], y: Shaped[Tensor, "N ..."], d: Float[Tensor, "N J"]
    ) -> Float[Tensor, "N J"]:
        return self.loss.hessian_product(z @ self.C, y, d @ self.C) @ self.C.T

    def conjugate(self, a: Float[Tensor, "N J"], y: Shaped[Tensor, "N ..."]) -> Float[Tensor, " N"]:
        return self.loss.conjugate(a @ self.C, y)

    def check_labels(self, y: Shaped[Tensor, " ..."], n_examples: int, n_outputs: int) -> None:
        self.loss.check_labels(y, n_examples, self.C.shape[1])


def _one_hot(y: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(1, y.unsqueeze(1), 1.0)


def _signs(y: Tensor, like: Tensor) -> Tensor:
    return y.to(like).unsqueeze(1)


def _check_shape(y: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(y.shape) != expected:
        raise InputError(
            f"got labels of shape {tuple(y.shape)}, expected {expected}: give one label per example"
        )
