"""Which directions of an update its outputs on the data need: smaller answers that keep the outputs.

With the singular directions of all layers, δ_t = Σ_j σ_tj a_tj b_tjᵀ, a linearised problem has the outputs

    z = f0 + Σ_tj w_tj,   w_tj,ik = σ_tj a_tjᵀ J_ik,t b_tj,

so that leaving out a set D of directions moves the contrasted outputs by exactly −Σ_D w. Truncation by weight
energy leaves out the smallest σ instead, whatever the data make of them.
Derived; docs/theory.md, "Compressing an update".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import product_svd
from tangentlora.theory.rank_reduction import reduce_rank


def parameters(factors: Factors) -> int:
    """Return Σ_t r_t(m_t + n_t), the numbers that an adapter of these factors holds."""
    return sum(u.numel() + v.numel() for u, v in factors.values())


def distance(first: Factors, second: Factors) -> float:
    """Return (Σ_t ‖δ_t − δ'_t‖_F²)^½ of two updates of the same layers."""

    def inner(a: Factors, b: Factors) -> float:
        return sum(float(((a[t][0].T @ b[t][0]) * (a[t][1].T @ b[t][1])).sum()) for t in a)

    return math.sqrt(max(0.0, inner(first, first) - 2 * inner(first, second) + inner(second, second)))


def theorem_count(factors: Factors) -> int:
    """Return Σ_t r_t(r_t+1)/2, which Theorem 1 brings down to c."""
    return sum(u.shape[1] * (u.shape[1] + 1) // 2 for u, _ in factors.values())


def reduce_by_layers(problem: Problem, factors: Factors) -> Factors:
    """Return what `reduce_rank` promises, by way of each layer on its own.

    Keeping what each layer adds to the outputs keeps their sum, and a layer alone comes down to
    r_t(r_t+1)/2 ≤ c. Every lost rank costs a factorisation of all symmetric coordinates that are still
    there, so for adapters of high rank in many layers most ranks go in problems T times smaller.
    Raises InputError for factors that do not fit the problem or are not finite.
    Source: Jang, Lee, Ryu 2024, Theorem 1, once per layer and then for all; docs/theory.md.
    """
    problem.require_factors(factors, "reduce the answer of the problem it was made for")
    inner = problem.contrasted
    alone: Factors = {}
    for name, pair in factors.items():
        one = Problem(inner.rows.only([name]), inner.f0, inner.y, inner.loss, inner.lam)
        alone |= reduce_rank(one, {name: pair})
    return reduce_rank(problem, alone)


@dataclass(frozen=True, eq=False)
class Directions:
    """The singular directions of an update, numbered 0, 1, ... layer by layer, largest σ first in each.

    Directions with σ = 0 are left out.
    """

    svds: Mapping[str, tuple[Float[Tensor, "_m _q"], Float[Tensor, " _q"], Float[Tensor, "_n _q"]]]

    @classmethod
    def of(cls, factors: Factors) -> Directions:
        """Return the directions of δ_t = u_t v_tᵀ, in float64."""
        svds = {}
        for name, (u, v) in factors.items():
            left, sigma, right = product_svd(u.to(torch.float64), v.to(torch.float64))
            keep = sigma > 0
            svds[name] = left[:, keep], sigma[keep], right[:, keep]
        return cls(svds)

    @property
    def layers(self) -> list[str]:
        """The layer of every direction."""
        return [name for name, (_, sigma, _) in self.svds.items() for _ in sigma]

    @property
    def sigma(self) -> Float[Tensor, " R"]:
        """The singular value of every direction."""
        return torch.cat([sigma for _, sigma, _ in self.svds.values()])

    def keep(self, kept: Iterable[int]) -> Factors:
        """Return balanced factors of the update that has these directions only."""
        chosen, factors, start = set(kept), {}, 0
        for name, (left, sigma, right) in self.svds.items():
            columns = [j for j in range(len(sigma)) if start + j in chosen]
            root = sigma[columns].sqrt()
            factors[name] = left[:, columns] * root, right[:, columns] * root
            start += len(sigma)
        return factors

    def effects(self, problem: Problem) -> Float[Tensor, "R NK"]:
        """Return w, what every direction adds to the contrasted outputs of the linearised problem."""
        jacobian, parts = problem.contrasted.rows, []
        for name, (left, sigma, right) in self.svds.items():
            at = jacobian.at({name: (left * sigma, right)})
            rows = (at.gu[name] * at.xv[name].unsqueeze(1)).flatten(1)
            moved = jacobian.layers[name].per_example(rows)
            parts.append(moved.reshape(*jacobian.zeros().shape, len(sigma)).flatten(0, 1).T)
        return torch.cat(parts)

    def order_by_outputs(self, problem: Problem, most: int | None = None) -> list[int]:
        """Return all directions in the order in which to give them up, most dispensable first.

        Each time the one goes that leaves ‖Σ_D w‖_F, D all that are gone, smallest: the change of the
        contrasted outputs. With `most` the layers of more than that many directions come first.
        """
        w = self.effects(problem)
        kernel, layers = w @ w.T, self.layers
        left = Counter(layers)
        lost = w.new_zeros(len(w))  # ⟨w_j, Σ_D w⟩
        alive, order = set(range(len(w))), []
        while alive:
            wide = [j for j in sorted(alive) if most is not None and left[layers[j]] > most]
            among = torch.tensor(wide or sorted(alive), device=w.device)
            cost = 2 * lost[among] + kernel[among, among]
            gone = int(among[cost.argmin()])
            lost += kernel[gone]
            alive.remove(gone)
            left[layers[gone]] -= 1
            order.append(gone)
        return order

    def order_by_energy(self, most: int | None = None) -> list[int]:
        """Return all directions in the order in which to give them up, smallest σ first.

        With `most` those beyond the first `most` of their layer come before the others.
        """
        places = [j for _, sigma, _ in self.svds.values() for j in range(len(sigma))]
        sigma = self.sigma.tolist()
        return sorted(
            range(len(sigma)), key=lambda j: (most is None or places[j] < most, sigma[j], -places[j])
        )

    def strongest(self, ranks: Mapping[str, int]) -> Factors:
        """Return the truncation by weight energy at these ranks: the largest σ of every layer."""
        return {
            name: (left[:, : ranks[name]] * root, right[:, : ranks[name]] * root)
            for name, (left, sigma, right) in self.svds.items()
            for root in [sigma[: ranks[name]].sqrt()]
        }

    def strongest_within(self, size: int) -> Factors:
        """Return the truncation by weight energy over all layers: the largest σ that fit into `size` numbers.

        They are taken largest first; one that no longer fits is passed over.
        """
        sides = {name: len(left) + len(right) for name, (left, _, right) in self.svds.items()}
        layers, kept, used = self.layers, [], 0
        for j in self.sigma.argsort(descending=True, stable=True).tolist():
            if used + sides[layers[j]] <= size:
                used += sides[layers[j]]
                kept.append(j)
        return self.keep(kept)
