"""Theorem 1 as a tool: an answer of lower rank with the same outputs on the data and no larger penalty.

Write δ_t = A_t X_t B_tᵀ with the singular vectors A_t, B_t and X_t = diag(σ). For every symmetric X_t ⪰ 0

    z_ik = f0_ik + Σ_t ⟨S_ik,t , X_t⟩,   S_ik,t = sym(A_tᵀ J_ik,t B_t),   Σ_t ‖δ_t‖_* = Σ_t tr X_t

are linear in X. While the symmetric matrices have more coordinates, Σ_t r_t(r_t+1)/2, than the outputs fix,
some Δ ≠ 0 moves no output; walking along it from X to the border of the cone loses a rank.
Source: Jang, Lee, Ryu 2024, Theorem 1, after Barvinok and Pataki; docs/theory.md, "Theorem 1 as a tool".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.independence import ABSENT
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import EPS, product_svd
from tangentlora.tangent.jacobian import Jacobian

_FLAT = 1e-8  # a penalty whose slope is below this fraction of its size counts as level


def reduce_rank(problem: Problem, factors: Factors) -> Factors:
    """Return balanced factors with Σ_t r_t(r_t+1)/2 ≤ c, the same outputs and no larger penalty.

    c is the number of independent outputs on the data (`Problem.constraints`). For cross-entropy the outputs
    that stay are the contrasted ones: a common shift of an example's logits may change, which softmax, the
    loss and every certificate ignore. An answer of which nothing can be dropped comes back balanced.

    Each output is divided by the size of its gradients first, so that the scale of an example does not
    matter. In float64 a singular value counts as zero at 8·r·ε of the largest of all r, and a direction of X
    moves no output if its singular value is at most 8·ε·(sum of the sides) of the largest. The outputs come
    first: where the kernel has eigenvalues between rounding and the 10⁻¹¹ from which `constraints` counts,
    they count here too, and the rank ends above c. Each lost rank costs O(ε)·‖J‖·Σ‖δ_t‖_* in the outputs.
    Raises InputError for factors that do not fit the problem or are not finite.
    Source: Jang, Lee, Ryu 2024, Theorem 1; docs/theory.md, "Theorem 1 as a tool".
    """
    problem.require_factors(factors, "reduce the answer of the problem it was made for")
    given = problem.zero() | factors
    svds = {name: product_svd(u.to(problem.f0), v.to(problem.f0)) for name, (u, v) in given.items()}
    floor = _zero([sigma for _, sigma, _ in svds.values()])
    jacobian, faces = problem.contrasted.rows, {}
    sizes = _sizes(jacobian)
    for name, (left, sigma, right) in svds.items():
        A, B = left[:, sigma > floor], right[:, sigma > floor]
        forms = (symmetric_forms(jacobian, name, A, B) / sizes[..., None, None]).flatten(0, 1)
        faces[name] = _Face(A, sigma[sigma > floor], B, forms)
    now = list(faces.values())
    while (direction := free_direction([face.forms for face in now])) is not None:
        now = _walk(now, direction)
    return {name: face.factors for name, face in zip(faces, now, strict=True)}


def _sizes(jacobian: Jacobian) -> Float[Tensor, "N K"]:
    """Return Σ_t Σ_ρ ‖g_ρk‖‖x_ρ‖, infinite where it is 0 beside others of its example."""
    sizes = torch.stack([extent.sizes for extent in jacobian.extents.values()]).sum(0)
    return torch.where(sizes > ABSENT * sizes.amax(1, keepdim=True), sizes, torch.inf)


@dataclass(frozen=True, eq=False)
class _Face:
    """One layer's δ = A diag(σ) Bᵀ, and what symmetric matrices between A and B do to the outputs."""

    A: Float[Tensor, "m r"]
    sigma: Float[Tensor, " r"]
    B: Float[Tensor, "n r"]
    forms: Float[Tensor, "NK r r"]

    @property
    def factors(self) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"]]:
        root = self.sigma.sqrt()
        return self.A * root, self.B * root


def _zero(spectra: Sequence[Float[Tensor, " _r"]]) -> float:
    """Return what counts as a singular value of zero: 8·ε times their number times the largest of all."""
    values = torch.cat(list(spectra))
    return 8 * EPS * len(values) * float(values.max()) if len(values) else 0.0


def symmetric_forms(
    jacobian: Jacobian, name: str, u: Float[Tensor, "m r"], v: Float[Tensor, "n r"]
) -> Float[Tensor, "N K r r"]:
    """Return S_ik = sym(uᵀ J_ik v) of one layer, (N,K,r,r), from the Jacobian's rows."""
    at = jacobian.at({name: (u, v)})
    gu, xv = at.gu[name], at.xv[name]
    forms = jacobian.layers[name].summed(gu.flatten(1), xv)
    forms = forms.reshape(len(forms), *gu.shape[1:], xv.shape[1])
    return (forms + forms.transpose(2, 3)) / 2


def free_direction(forms: Sequence[Float[Tensor, "h _r _r"]]) -> list[Float[Tensor, "_r _r"]] | None:
    """Return symmetric Δ_t with Σ_t ⟨S_ik,t , Δ_t⟩ = 0 for all i, k and Σ_t tr Δ_t ≤ 0; None if only 0 has.

    It is the one along which the penalty falls fastest, or any where the penalty is level.
    """
    sizes = [form.shape[-1] for form in forms]
    if not sum(sizes):
        return None
    constraints = torch.cat([_pack(form) for form in forms], dim=1)
    identity = torch.cat([_pack(torch.eye(r).to(constraints)) for r in sizes])
    drawn = torch.randn(len(identity), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projected = _without_rows(constraints, torch.stack([identity, drawn.to(identity)], dim=1))
    if projected is None:
        return None
    slope, other = projected.T
    if float(slope.norm()) <= _FLAT * float(identity.norm()):
        slope = other if float(other @ identity) > 0 else -other
    lengths = [r * (r + 1) // 2 for r in sizes]
    return [_unpack(-part, r) for part, r in zip(slope.split(lengths), sizes, strict=True)]


def _pack(matrices: Float[Tensor, "*b r r"]) -> Float[Tensor, "*b w"]:
    """Return the entries on and above the diagonal, those off it times √2, so that ⟨X, Y⟩ is kept."""
    i, j = torch.triu_indices(*matrices.shape[-2:], device=matrices.device)
    entries = matrices[..., i, j]
    return torch.where(i == j, entries, 2**0.5 * entries)


def _unpack(vector: Float[Tensor, " w"], size: int) -> Float[Tensor, "r r"]:
    i, j = torch.triu_indices(size, size, device=vector.device)
    matrix = vector.new_zeros(size, size)
    matrix[i, j] = matrix[j, i] = torch.where(i == j, vector, vector / 2**0.5)
    return matrix


def _without_rows(
    constraints: Float[Tensor, "h w"], vectors: Float[Tensor, "w s"]
) -> Float[Tensor, "w s"] | None:
    """Return the vectors' projections onto the null space of the constraints; None where it is zero.

    With fewer constraints than coordinates no rank has to be decided: an orthonormal basis that holds all
    rows is taken out, twice, as once leaves rounding.
    """
    h, w = constraints.shape
    if h < w:
        reflectors = torch.geqrf(constraints.T)
        for _ in range(2):
            turned = torch.ormqr(*reflectors, vectors, transpose=True)
            turned[:h] = 0
            vectors = torch.ormqr(*reflectors, turned)
        return vectors
    _, sigma, right = torch.linalg.svd(constraints, full_matrices=False)
    null = right[sigma <= 8 * EPS * (h + w) * sigma[0]]
    return null.T @ (null @ vectors) if len(null) else None


def _walk(faces: Sequence[_Face], direction: Sequence[Float[Tensor, "_r _r"]]) -> list[_Face]:
    """Return the faces at the border: X_t = diag(σ_t) + τΔ_t ⪰ 0 for the largest τ, in its eigenbasis.

    At least one eigenvalue is zero there, and goes. AV and BV have orthonormal columns again.
    """
    tau = _border([face.sigma for face in faces], direction)
    spectra: list[tuple[Tensor, Tensor]] = []
    for face, block in zip(faces, direction, strict=True):
        sigma, V = torch.linalg.eigh(torch.diag(face.sigma) + tau * block)
        spectra.append((sigma, V))
    lowest = min(float(sigma[0]) for sigma, _ in spectra if len(sigma))
    floor = max(_zero([sigma for sigma, _ in spectra]), lowest)
    moved = []
    for face, (sigma, V) in zip(faces, spectra, strict=True):
        V = V[:, sigma > floor]
        moved.append(_Face(face.A @ V, sigma[sigma > floor], face.B @ V, V.T @ face.forms @ V))
    return moved


def _border(sigmas: Sequence[Float[Tensor, " _r"]], direction: Sequence[Float[Tensor, "_r _r"]]) -> float:
    """Return the τ > 0 at which the least eigenvalue of all diag(σ_t) + τΔ_t is zero.

    It is concave in τ, so Newton's method, τ ← −wᵀdiag(σ)w / wᵀΔw with its eigenvector w, comes down to its
    zero from every τ beyond. As Σ tr Δ_t ≤ 0, 2Σσ / ‖Δ‖_F is beyond; a layer inside at one τ is so before.
    """
    length = float(torch.cat([block.flatten() for block in direction]).norm())
    tau = 2 * sum(float(sigma.sum()) for sigma in sigmas) / length
    for sigma, block in zip(sigmas, direction, strict=True):
        while len(sigma):
            values, vectors = torch.linalg.eigh(torch.diag(sigma) + tau * block)
            w = vectors[:, 0]
            following = float((sigma * w.square()).sum() / -(w @ block @ w))
            if values[0] >= 0 or following >= tau:  # rounding ends the descent
                break
            tau = following
    return tau
