"""The design matrix A = (∇²L̂)^{1/2} B of some examples: along d = (U, V) their outputs move by B d.

Row (i,k) of B holds vec(J_ik v) for U and vec(J_ikᵀ u) for V, layer by layer, so that AᵀA is the curvature of
the data fit. Derived; docs/theory.md, "Newton's method".
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.problem.losses import Loss
from tangentlora.tangent.jacobian import FactoredPoint


def loss_root(loss: Loss, z: Float[Tensor, "N K"], y: Tensor, n: int) -> Float[Tensor, "N K K"]:
    """Return (∇²ℓ_i / n)^{1/2} for every example: the Hessian couples the outputs of one example only."""
    columns = [loss.hessian_product(z, y, unit.expand_as(z)) for unit in torch.eye(z.shape[1]).to(z)]
    values, vectors = torch.linalg.eigh(torch.stack(columns, 2) / n)
    root: Tensor = (vectors * values.clamp(min=0).sqrt().unsqueeze(1)) @ vectors.mT
    return root


def design_matrix(point: FactoredPoint, root: Float[Tensor, "N K K"]) -> Float[Tensor, "NK d"]:
    """Return A for all layers of the point, u before v in each."""
    sides = (side for name in point.xv for side in (point.moved_by_u(name), point.moved_by_v(name)))
    return torch.cat([root @ side.flatten(2) for side in sides], 2).flatten(0, 1)
