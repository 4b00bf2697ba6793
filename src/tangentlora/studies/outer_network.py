"""The real network on the training examples: its objective, the gradient in the factors, its tangents."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from tangentlora.blocks import Factors
from tangentlora.models.attach import attached
from tangentlora.problem.objective import Problem, half_squares, nuclear_norm
from tangentlora.studies.prepare import Prepared
from tangentlora.tangent.gradient import weight_gradients
from tangentlora.tangent.linearize import linearize_at
from tangentlora.tangent.tangent import Tangent


@dataclass(frozen=True, eq=False)
class RealNetwork:
    """The real network on the training examples."""

    prepared: Prepared

    @property
    def rounding(self) -> float:
        """What P cannot resolve, relative to max(1, P): two roundings of the network's precision."""
        precision = next(w.dtype for w in self.prepared.network.module.parameters() if w.is_floating_point())
        return 2 * float(torch.finfo(precision).eps)

    def objective(self, factors: Factors) -> float:
        """Return P(δ) = L(f(W+δ)) + λ Σ_t ‖δ_t‖_*."""
        prepared, problem = self.prepared, self.prepared.problem
        with attached(prepared.network.module, prepared.targets, factors):
            z = prepared.network.predict(prepared.splits.train.inputs, prepared.settings.batch_size)
        return problem.empirical_loss(z.to(problem.f0)) + problem.lam * nuclear_norm(factors)

    def evaluate(self, factors: Factors) -> tuple[float, Factors]:
        """Return F(u,v) = L(f(W+uvᵀ)) + λ/2 Σ_t (‖u_t‖² + ‖v_t‖²) and its gradient in u and v."""
        prepared, problem = self.prepared, self.prepared.problem
        with attached(prepared.network.module, prepared.targets, factors):
            found = weight_gradients(
                prepared.network,
                prepared.splits.train.inputs,
                problem.y.cpu(),
                prepared.targets,
                problem.loss,
                batch_size=prepared.settings.batch_size,
            )
        gradient = {}
        for name, (u, v) in factors.items():
            M = found.gradients[name].to(u)
            gradient[name] = (M @ v + problem.lam * u, M.T @ u + problem.lam * v)
        loss = problem.empirical_loss(found.outputs.to(problem.f0))
        return loss + problem.lam * half_squares(factors), gradient

    def linearised(self, factors: Factors, progress: bool) -> tuple[Tangent, Problem]:
        """Return the tangent at W + δ, written in δ itself, and its problem."""
        prepared, problem = self.prepared, self.prepared.problem
        if not any(u.shape[1] for u, _ in factors.values()):
            return prepared.train, problem
        tangent = linearize_at(
            prepared.network,
            prepared.splits.train.inputs,
            prepared.targets,
            factors,
            batch_size=prepared.settings.batch_size,
            centred=prepared.train.centred,
            progress=progress,
        )
        identity = tangent.identity | {"update_sha256": _sha256(factors)}
        jacobian = tangent.jacobian.to(torch.float64, problem.f0.device)
        f0 = tangent.f0.to(problem.f0) - jacobian.at(factors).forward()
        # as a store keeps it: the certificate is then of the very numbers that can be read back
        tangent = replace(tangent, f0=f0.to("cpu", torch.float32), identity=identity)
        return tangent, problem_of(prepared, tangent)


def problem_of(prepared: Prepared, tangent: Tangent) -> Problem:
    """Return the problem of the same data and λ on another tangent."""
    was = prepared.problem
    jacobian = tangent.jacobian.to(torch.float64, was.f0.device)
    return Problem(jacobian, tangent.f0.to(was.f0.device), was.y, was.loss, was.lam)


def _sha256(factors: Factors) -> str:
    digest = hashlib.sha256()
    for name in sorted(factors):
        for factor in factors[name]:
            digest.update(f"{name} {tuple(factor.shape)};".encode())
            digest.update(factor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
