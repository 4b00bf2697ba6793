"""The smallest eigenvalue of the Hessian of F_Π: dense where it is small, by Lanczos where it is not.

Every value returned is a Rayleigh quotient, hence an upper bound on the smallest eigenvalue: a negative one
proves a direction of descent. Only the claim that there is no smaller one rests on the error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from tangentlora.theory.hessian import Hessian

DENSE = 600
"""Up to as many parameters the Hessian is formed and all its eigenvalues are computed."""

_WIDTH = 60  # Lanczos vectors kept between restarts


@dataclass(frozen=True, eq=False)
class Lowest:
    """The smallest eigenvalue of ∇²F_Π beside the zeros of rotations, its error and a unit eigenvector.

    The error is rounding for a dense decomposition and the residual ‖Hx − θx‖ for Lanczos; infinite where
    Lanczos did not converge.
    """

    value: float
    error: float
    vector: Float[Tensor, " d"]


def lowest(hessian: Hessian, *, precision: float = 1e-8, max_restarts: int = 300, seed: int = 0) -> Lowest:
    """Return the smallest eigenvalue of ∇²F_Π on the directions orthogonal to every rotation QΩ.

    Up to `DENSE` parameters from the matrix itself; else by Lanczos from a random start, to a residual of
    `precision`·max_t ‖S_t‖₂, and from directions wzᵀ in which a column is unused (Qz = 0): there the Hessian
    is S_t, and its lowest eigenvector w the escape that no gradient shows.
    """
    if len(hessian.gradient) <= DENSE:
        return _dense(hessian)
    best = _lanczos(hessian, precision, max_restarts, seed)
    for vector in _unused(hessian):
        value = float(vector @ hessian.product(vector))
        if value < best.value:
            best = Lowest(value, best.error, vector)
    return best


def _unused(hessian: Hessian) -> list[Float[Tensor, " d"]]:
    """Return unit directions wzᵀ, w the lowest eigenvector of S_t and z that of Q_tᵀQ_t, layer by layer."""
    found = []
    for name, (u, v) in hessian.factors.items():
        if u.shape[1] and len(u) + len(v):
            z = torch.linalg.eigh(u.T @ u + v.T @ v).eigenvectors[:, 0]
            w = torch.linalg.eigh(hessian.slack(name)).eigenvectors[:, 0]
            D = torch.outer(w, z)
            zero = {t: (torch.zeros_like(a), torch.zeros_like(b)) for t, (a, b) in hessian.factors.items()}
            d = hessian.without_rotations(hessian.pack(zero | {name: (D[: len(u)], D[len(u) :])}))
            if float(d.norm()) > 0.5:  # at a stationary point Qz = 0 leaves it as it is
                found.append(d / d.norm())
    return found


def _dense(hessian: Hessian) -> Lowest:
    """Return the lowest eigenpair of (I−R)H(I−R) + cR, R the projection on rotations, c above all of H."""
    H = hessian.dense()
    if not len(H):
        return Lowest(float("inf"), 0.0, hessian.gradient)
    R = hessian.rotations
    top = float(torch.linalg.matrix_norm(H))
    across = H - R @ (R.T @ H)
    lifted = across - (across @ R) @ R.T + 2 * top * (R @ R.T)
    values, vectors = torch.linalg.eigh(0.5 * (lifted + lifted.T))
    rounding = 8 * len(H) * torch.finfo(H.dtype).eps * top
    return Lowest(float(values[0]), rounding, vectors[:, 0])


def _lanczos(hessian: Hessian, precision: float, max_restarts: int, seed: int) -> Lowest:
    """Return the lowest eigenpair by implicitly restarted Lanczos on c − H, whose largest it is.

    The stopping rule is relative to the eigenvalue sought: to c, then, and not to one that may be 0.
    """
    size, like = len(hessian.gradient), hessian.gradient
    scale = max(hessian.slack_norm(name) for name in hessian.factors)
    generator = np.random.default_rng(seed)
    start = generator.standard_normal(size)

    def multiply(x: NDArray[np.float64]) -> Tensor:
        d = hessian.without_rotations(torch.from_numpy(np.ascontiguousarray(x).reshape(-1)).to(like))
        return hessian.without_rotations(hessian.product(d))

    top = LinearOperator((size, size), matvec=lambda x: multiply(x).cpu().numpy(), dtype=np.float64)
    c = 1.5 * abs(float(eigsh(top, 1, which="LM", v0=start, tol=0.1, return_eigenvectors=False)[0]))

    def complement(x: NDArray[np.float64]) -> NDArray[np.float64]:
        d = torch.from_numpy(np.ascontiguousarray(x).reshape(-1)).to(like)
        kept = hessian.without_rotations(d)  # rotations become 0, the lowest eigenvalue of c − H
        result: NDArray[np.float64] = (c * kept - multiply(x)).cpu().numpy()
        return result

    operator = LinearOperator((size, size), matvec=complement, dtype=np.float64)
    error, width = 0.0, min(_WIDTH, size - 1)
    try:
        _, vectors = eigsh(
            operator,
            1,
            which="LA",
            v0=start,
            ncv=width,
            tol=0.1 * precision * scale / c,
            maxiter=max_restarts,
        )
    except ArpackNoConvergence as failure:
        vectors = failure.eigenvectors if failure.eigenvectors.size else start[:, None]
        error = float("inf")
    x = hessian.without_rotations(torch.from_numpy(vectors[:, 0].copy()).to(like))
    x = x / x.norm()
    product = hessian.without_rotations(hessian.product(x))
    value = float(x @ product)
    return Lowest(value, max(error, float((product - value * x).norm())), x)
