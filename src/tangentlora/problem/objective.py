"""The convex problem P(δ) = (1/N) Σ_i ℓ(z_i(δ), y_i) + λ Σ_t ‖δ_t‖_*, z = f0 + Jδ, and its factored form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tangentlora.blocks import Blocks, Factors
from tangentlora.errors import InputError
from tangentlora.problem.independence import independent_outputs
from tangentlora.problem.losses import Contrasted, Loss
from tangentlora.problem.spectral import norm_bound, product_singular_values
from tangentlora.tangent.jacobian import Jacobian, in_memory
from tangentlora.tangent.operator import Operator
from tangentlora.tangent.span import Span, restrict

_KERNEL_LIMIT = 4096
_SAMPLE = 512  # outputs of the examples that a preconditioner is made of
_LARGEST = 1e154  # squares overflow above


@dataclass(frozen=True, eq=False)
class Problem:
    """Linearised fine-tuning with nuclear-norm regularisation; LoRA with weight decay is its factored form.

    P(δ) = L̂(δ) + λ Σ_t ‖δ_t‖_* and F(u,v) = L̂(uvᵀ) + λ/2 Σ_t (‖u_t‖² + ‖v_t‖²), where
    L̂(δ) = (1/N) Σ_i ℓ(f0_i + (Jδ)_i, y_i). All numbers are float64: everything given is converted.
    Raises InputError for λ < 0 or not finite, for outputs or a Jacobian that are not finite or do not belong
    together, and for labels that do not fit the outputs.
    Source: Jang, Lee, Ryu 2024, section 2.
    """

    jacobian: Operator
    f0: Float[Tensor, "N K"]
    y: Shaped[Tensor, "N ..."]
    loss: Loss
    lam: float
    _origin: Problem | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        _require_penalty(self.lam)
        object.__setattr__(self, "jacobian", self.jacobian.to(torch.float64))
        object.__setattr__(self, "f0", self.f0.to(self.jacobian.device, torch.float64))
        kind = torch.float64 if self.y.is_floating_point() else torch.int64
        object.__setattr__(self, "y", self.y.to(self.jacobian.device, kind))
        if self.f0.shape != (self.jacobian.n_examples, self.jacobian.n_outputs):
            raise InputError(
                f"got outputs of shape {tuple(self.f0.shape)} for a Jacobian of {self.jacobian.n_examples} "
                f"examples and {self.jacobian.n_outputs} outputs, expected the same examples: linearise them "
                "together"
            )
        if not (len(self.f0) and bool(torch.isfinite(self.f0).all()) and self.jacobian.is_finite()):
            raise InputError(
                "got no examples, or outputs or gradients that are not finite, expected numbers: use float32 "
                "weights and remove the examples that overflow"
            )
        x, g = self.jacobian.largest
        if x * g > _LARGEST:
            raise InputError(
                f"got gradients as large as {x * g:.0e}, whose squares overflow in float64, expected less "
                f"than {_LARGEST:.0e}: divide the Jacobian and λ by one number, which only scales the updates"
            )
        self.loss.check_labels(self.y, *self.f0.shape)

    @property
    def rows(self) -> Jacobian:
        """The Jacobian with its rows in memory; raises InputError where they lie elsewhere."""
        return in_memory(self.jacobian, "this step")

    def with_lam(self, lam: float) -> Problem:
        """Return the problem of the same data at another λ; the two share all that does not depend on it.

        Raises InputError for λ < 0 or not finite.
        """
        _require_penalty(lam)
        other = object.__new__(Problem)  # the tensors were converted and checked once: a path asks for many λ
        shared = {part.name: getattr(self, part.name) for part in fields(self)}
        origin = self if self._origin is None else self._origin
        for name, value in (shared | {"lam": lam, "_origin": origin}).items():
            object.__setattr__(other, name, value)
        return other

    def outputs(self, factors: Factors) -> Float[Tensor, "N K"]:
        """Return z = f0 + J(uvᵀ), (N,K)."""
        return self.f0 + self.jacobian.at(factors).forward()

    def empirical_loss(self, z: Float[Tensor, "N K"]) -> float:
        """Return L̂ = (1/N) Σ_i ℓ(z_i, y_i)."""
        return float(self.loss.value(z, self.y).mean())

    def dual_point(self, z: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return a = ∇_z L̂, (N,K); it contains the 1/N."""
        return self.loss.gradient(z, self.y) / len(z)

    def objective(self, factors: Factors) -> float:
        """Return P(uvᵀ)."""
        return self.empirical_loss(self.outputs(factors)) + self.lam * nuclear_norm(factors)

    def factored_objective(self, factors: Factors) -> float:
        """Return F(u,v) ≥ P(uvᵀ), with equality where uᵀu = vᵀv."""
        return self.empirical_loss(self.outputs(factors)) + self.lam * half_squares(factors)

    def gap(self, factors: Factors) -> float:
        """Return F(u,v) minus the dual value at the scaled gradient: a fast estimate by which solvers stop.

        It is what `certify` proves apart from its margin for rounding; only the certificate is a proof.
        Source: derived; docs/theory.md, "The certificate".
        """
        z = self.outputs(factors)
        primal = self.empirical_loss(z) + self.lam * half_squares(factors)
        return primal - self.dual_value(self.dual_point(z))

    def dual_value(self, a: Float[Tensor, "N K"], M: Blocks | None = None) -> float:
        """Return s⟨a, f0⟩ − (1/N) Σ ℓ*(N s a_i) with s = min(1, λ / max_t ‖M_t‖₂), M_t = Σ_ik a_ik J_ik,t.

        M is taken as given where it is known.
        """
        M = self.jacobian.adjoint(a) if M is None else M
        norm = max(norm_bound(block) for block in M.values())
        s = 1.0 if norm <= self.lam else self.lam / norm
        conjugate = self.loss.conjugate(len(a) * s * a, self.y).mean()
        return float(s * (a * self.f0).sum() - conjugate)

    @cached_property
    def contrasted(self) -> Problem:
        """The same problem in the fewest outputs that the loss can tell apart (K−1 for cross-entropy)."""
        C = self.loss.contrasts(self.jacobian.n_outputs)
        if C is None:
            return self
        if self._origin is not None:
            return self._origin.contrasted.with_lam(self.lam)
        C = C.to(self.f0)
        jacobian = self.jacobian.combine_outputs(C)
        return Problem(jacobian, self.f0 @ C.T, self.y, Contrasted(self.loss, C), self.lam)

    @cached_property
    def reduced(self) -> tuple[Problem, Span]:
        """The contrasted problem in coordinates of the Jacobian's span, and the span to lift answers back."""
        if self._origin is not None:
            inner, span = self._origin.reduced
            return inner.with_lam(self.lam), span
        jacobian, span = restrict(self.contrasted.jacobian)
        inner = self.contrasted
        return Problem(jacobian, inner.f0, inner.y, inner.loss, inner.lam), span

    @cached_property
    def sample(self) -> tuple[Int[Tensor, " S"], Jacobian]:
        """Some examples that stand for all, at most 512 outputs of them, and their rows in memory.

        A preconditioner is made of them, never an answer or a certificate. Drawn from a fixed seed.
        """
        if self._origin is not None:
            return self._origin.sample
        n, k = self.f0.shape
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        index = order[: max(1, _SAMPLE // k)].sort().values.to(self.f0.device)
        return index, self.jacobian.select(index)

    @cached_property
    def _kernel(self) -> Float[Tensor, "c c"]:
        return self.contrasted.jacobian.gram()

    @cached_property
    def kernel_eigenvalues(self) -> Float[Tensor, " c"]:
        """The eigenvalues of the contrasted tangent kernel J Jᵀ, smallest first."""
        if self._origin is not None:
            return self._origin.kernel_eigenvalues
        values: Tensor = torch.linalg.eigvalsh(self._kernel)
        return values

    @cached_property
    def constraints(self) -> int:
        """The number c of independent outputs on the data: the numerical rank of the contrasted kernel.

        The kernel is scaled to a unit diagonal first: the rank does not depend on the scale of an example.
        Above 4,096 outputs, where the kernel is too large to decompose, the bound N·K' on it (K' contrasted
        outputs). Derived; docs/theory.md, "Contrasts".
        """
        size = self.contrasted.f0.numel()
        if size > _KERNEL_LIMIT:
            return size
        if self._origin is not None:
            return self._origin.constraints
        return independent_outputs(self.contrasted.jacobian, lambda: self._kernel)

    def require_factors(self, factors: Factors, remedy: str) -> None:
        """Raise InputError unless these are finite pairs u_t (m,r), v_t (n,r) of layers of the problem.

        `remedy` says what to do with an answer of another problem.
        """
        for name, (u, v) in factors.items():
            shape = self.jacobian.shapes.get(name)
            if not (u.ndim == v.ndim == 2 and (u.shape[0], v.shape[0]) == shape and u.shape[1] == v.shape[1]):
                raise InputError(
                    f"got factors of shapes {tuple(u.shape)} and {tuple(v.shape)} for {name!r}, expected "
                    f"(m, r) and (n, r) of a layer of the problem with (m, n) = {shape}: {remedy}"
                )
            if not (torch.isfinite(u).all() and torch.isfinite(v).all()):
                raise InputError(
                    f"got factors of {name!r} that are not finite, expected numbers: the run diverged, so "
                    "lower the learning rate"
                )

    def zero(self) -> Factors:
        """Return factors of rank zero for every layer: δ = 0."""
        return {
            name: (self.f0.new_zeros(m, 0), self.f0.new_zeros(n, 0))
            for name, (m, n) in self.jacobian.shapes.items()
        }


def _require_penalty(lam: float) -> None:
    if not (math.isfinite(lam) and lam >= 0):
        raise InputError(
            f"got λ = {lam}, expected a number of at least 0: give --lam a positive value such as 0.01"
        )


def nuclear_norm(factors: Factors) -> float:
    """Return Σ_t ‖u_t v_tᵀ‖_*."""
    return sum(float(product_singular_values(u, v).sum()) for u, v in factors.values())


def half_squares(factors: Factors) -> float:
    """Return ½ Σ_t (‖u_t‖² + ‖v_t‖²) ≥ Σ_t ‖u_t v_tᵀ‖_*."""
    return 0.5 * sum(float(u.square().sum() + v.square().sum()) for u, v in factors.values())
