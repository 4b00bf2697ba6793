"""Rows whose output-gradients live in separate bands of columns, such as the heads of an attention layer.

If every example has as many rows in each of H bands of w columns, M_t = Σ_ρ ĝ_ρ x_ρᵀ is a stack of H
products (w,R/H)·(R/H,n): an H-th of the work. Rows of different bands are orthogonal.
The bands are found from the zeros of g and from nothing else. Derived; docs/theory.md, "Rows".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Bands:
    """The output-gradients without their zeros, band by band; S rows in each, as many of every example."""

    g: Float[Tensor, "H S K w"]
    n_examples: int

    @property
    def own(self) -> int:
        """How many rows an example has in a band."""
        return self.g.shape[1] // self.n_examples

    def split(self, rows: Float[Tensor, "R p"]) -> Float[Tensor, "H S p"]:
        """Return the rows band by band: a view where an example has one in each."""
        apart = rows.reshape(self.n_examples, len(self.g), self.own, rows.shape[1])
        return apart.transpose(0, 1).reshape(*self.g.shape[:2], rows.shape[1])

    def times(self, u: Float[Tensor, "m r"]) -> Float[Tensor, "R K r"]:
        """Return g_ρkᵀ u."""
        h, s, k, w = self.g.shape
        products = torch.bmm(self.g.reshape(h, s * k, w), u.reshape(h, w, u.shape[1]))
        apart = products.reshape(h, self.n_examples, self.own, k, u.shape[1])
        return apart.transpose(0, 1).reshape(h * s, k, u.shape[1])

    def pull(self, weights: Float[Tensor, "R K"], rows: Float[Tensor, "R p"]) -> Float[Tensor, "m p"]:
        """Return Σ_ρ ĝ_ρ rows_ρᵀ with ĝ_ρ = Σ_k weights_ρk g_ρk."""
        weighted = (self.g * self.split(weights).unsqueeze(3)).sum(2)
        return torch.bmm(weighted.mT, self.split(rows)).flatten(0, 1)


def find_bands(g: Float[Tensor, "R K m"], counts: Int[Tensor, " N"]) -> Bands | None:
    """Return the finest bands of equal width in which every example has equally many rows, or None.

    They are looked for in one order, from the first columns to the last, the same for all examples.
    """
    rows, _, m = g.shape
    n = len(counts)
    per_example = rows // n if n else 0
    if per_example < 2 or not bool((counts == per_example).all()):
        return None
    used = torch.zeros(per_example, m, dtype=torch.bool, device=g.device)
    step = max(1, n // 16)  # the mask of a sixteenth of the examples at a time
    for start in range(0, n, step):
        part = g[start * per_example : (start + step) * per_example]
        used |= (part != 0).any(1).reshape(-1, per_example, m).any(0)
    for h in range(per_example, 1, -1):
        if per_example % h == 0 and m % h == 0:
            filled = used.reshape(h, per_example // h, h, m // h).any(3).any(1)
            if not bool(filled.fill_diagonal_(False).any()):
                return _gathered(g, n, h)
    return None


def _gathered(g: Float[Tensor, "R K m"], n: int, h: int) -> Bands:
    rows, k, m = g.shape
    apart = g.reshape(n, h, rows // n // h, k, h, m // h)
    return Bands(torch.stack([apart[:, i, :, :, i].flatten(0, 1) for i in range(h)]), n)
