"""Problems whose landscape at rank one is known in closed form: a spurious minimum or a strict saddle.

Squared loss, N = 4, K = 1, one layer; with orthonormal p₁, p₂ ∈ R^m and q₁, q₂ ∈ R^n the examples see

    J_1 = p₁q₁ᵀ,  J_2 = p₂q₂ᵀ  with target 1,     J_3 = √w p₁q₂ᵀ,  J_4 = √w p₂q₁ᵀ  with target √w·t.

Put d = (1, −1)/√2 and s = (1, 1)/√2 in those coordinates and Λ = 4λ. Then u = v = √2 x d with

    x² = (1 − Λ − wt)/(1 + w)  > 0

is stationary for F at rank one. Times 4, the Hessian in these four coordinates has the eigenvalues

    2Λ,   2(1+w)x²,   2Λ + 2w(x²+t) + 2wx²,   2(x² − w(x²+t)),

the last along U = V = s; outside them it is Λ. So it is a strict local minimum where x²(1−w) > wt, and a
strict saddle where x²(1−w) < wt. It is never global, even at rank one: turning the sign of the second
coordinate is turning that of t, and along u = v = √X·(1, ±1) four times F is
(X−1)² + w(X ∓ t)² + 2ΛX, smaller for the upper sign at every X > 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.losses import Squared
from tangentlora.problem.objective import Problem
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows


@dataclass(frozen=True)
class Planted:
    """The weights w, the off-diagonal target t, and λ with Λ = 4λ; a seed turns the coordinates."""

    w: float = 0.05
    t: float = 0.5
    lam: float = 0.02
    m: int = 4
    n: int = 4
    seed: int | None = None

    @property
    def square(self) -> float:
        """x² at the branch d."""
        return (1 - 4 * self.lam - self.w * self.t) / (1 + self.w)

    @property
    def eigenvalues(self) -> list[float]:
        """The Hessian of F at the planted point, smallest first."""
        x2, big, w, t = self.square, 4 * self.lam, self.w, self.t
        inner = [2 * big, 2 * (1 + w) * x2, 2 * big + 2 * w * (x2 + t) + 2 * w * x2, 2 * (x2 - w * (x2 + t))]
        return sorted(value / 4 for value in [*inner, *[big] * (self.m + self.n - 4)])

    def value(self, sign: int) -> float:
        """F on the branch (1, sign): min over X of ((X−1)² + w(X − sign·t)² + 2ΛX)/4."""
        X = (1 - 4 * self.lam + sign * self.w * self.t) / (1 + self.w)
        return ((X - 1) ** 2 + self.w * (X - sign * self.t) ** 2 + 8 * self.lam * X) / 4

    @property
    def problem(self) -> Problem:
        """The problem."""
        p, q = self._frames()
        root = self.w**0.5
        x = torch.stack([q[:, 0], q[:, 1], q[:, 1], q[:, 0]])
        g = torch.stack([p[:, 0], p[:, 1], root * p[:, 0], root * p[:, 1]]).unsqueeze(1)
        y = torch.tensor([1.0, 1.0, root * self.t, root * self.t], dtype=torch.float64).unsqueeze(1)
        jacobian = Jacobian({"layer": LayerRows(x, g, torch.ones(4, dtype=torch.long))})
        return Problem(jacobian, torch.zeros(4, 1, dtype=torch.float64), y, Squared(), self.lam)

    def at(self, sign: int) -> Factors:
        """The stationary point of rank one on the branch (1, sign); sign −1 is the planted one."""
        p, q = self._frames()
        X = (1 - 4 * self.lam + sign * self.w * self.t) / (1 + self.w)
        entries = X**0.5 * torch.tensor([[1.0], [float(sign)]], dtype=torch.float64)
        return {"layer": (p @ entries, q @ entries)}

    def direction(self) -> Factors:
        """The unit direction U = V ∝ s, of the last eigenvalue."""
        p, q = self._frames()
        entries = 0.5 * torch.ones(2, 1, dtype=torch.float64)
        return {"layer": (p @ entries, q @ entries)}

    def _frames(self) -> tuple[Tensor, Tensor]:
        if self.seed is None:
            return torch.eye(self.m, 2, dtype=torch.float64), torch.eye(self.n, 2, dtype=torch.float64)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [torch.randn(size, 2, generator=generator, dtype=torch.float64) for size in (self.m, self.n)]
        p, q = (torch.linalg.qr(matrix).Q for matrix in drawn)
        return p, q


SPURIOUS = Planted()
"""x² ≈ 0.852 and wt = 0.025: a strict local minimum that is not global."""

SADDLE = Planted(w=0.7, t=0.6, lam=0.02)
"""x² ≈ 0.294 and wt = 0.42: the same point, a strict saddle at full rank."""
