"""Which columns of an answer matter: numerical ranks, and truncation to them, decided by what outputs show.

A singular value of δ_t far below the largest of all layers says little by itself: a layer with gradients
1e8 times as large does with a δ_t 1e8 times as small what the others do, and so does an example. So a small
component σ a bᵀ counts as zero only where the outputs do not show it either. Derived; docs/certificates.md.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import EPS, RANK_TOLERANCE, balance, product_singular_values


def ranks(problem: Problem, factors: Factors, tolerance: float = RANK_TOLERANCE) -> dict[str, int]:
    """Return the rank of each δ_t = u_t v_tᵀ: the number of its singular components that count.

    A component counts as zero where its σ is at most `tolerance` times the largest of all layers, and its
    effect (`effects`) at most `tolerance` times that of δ, and times 1; or where σ is the rounding of the
    layer's own largest.
    """
    values = {name: product_singular_values(u, v) for name, (u, v) in factors.items()}
    if not any(bool(part.any()) for part in _doubtful(values, factors, tolerance).values()):
        largest = _largest(values)
        return {name: int((s > tolerance * largest).sum()) for name, s in values.items()}
    balanced = {name: balance(u, v) for name, (u, v) in factors.items()}
    return {name: int(kept.sum()) for name, kept in material(problem, balanced, tolerance).items()}


def truncate(problem: Problem, factors: Factors, tolerance: float) -> Factors:
    """Balance every layer and drop the components that count as zero in its rank, as `ranks` has it."""
    balanced = {name: balance(u, v) for name, (u, v) in factors.items()}
    kept = material(problem, balanced, tolerance)
    return {name: (u[:, kept[name]], v[:, kept[name]]) for name, (u, v) in balanced.items()}


def material(problem: Problem, columns: Factors, tolerance: float) -> dict[str, Bool[Tensor, " _r"]]:
    """Return which columns (u_j, v_j) count, for factors whose columns are orthogonal: those of `ranks`.

    σ_j stands for ½(‖u_j‖² + ‖v_j‖²). Only columns in doubt cost a pass over the Jacobian.
    """
    values = {name: 0.5 * (u.square().sum(0) + v.square().sum(0)) for name, (u, v) in columns.items()}
    largest = _largest(values)
    kept = {name: s > tolerance * largest for name, s in values.items()}
    doubtful = {
        name: part for name, part in _doubtful(values, columns, tolerance).items() if bool(part.any())
    }
    if doubtful:
        seen = problem.contrasted
        change = seen.jacobian.at(columns).forward()
        floor = tolerance * min(1.0, float(change.square().sum(1).mean().sqrt()))
        asked = {
            name: (columns[name][0][:, part], columns[name][1][:, part]) for name, part in doubtful.items()
        }
        for name, effect in effects(seen, asked).items():
            kept[name][doubtful[name]] = effect > floor
    return kept


def effects(problem: Problem, columns: Factors) -> dict[str, Float[Tensor, " _r"]]:
    """Return √(mean_i ‖J_i(u_j v_jᵀ)‖²) of each column: how far it moves the outputs, in one pass."""
    found = {}
    for name, rows in problem.jacobian.within(columns).layers.items():
        moved = rows.per_example((rows.g * rows.x.unsqueeze(1)).flatten(1))
        squares = moved.square().reshape(len(moved), -1, rows.x.shape[1]).sum(1)
        found[name] = squares.mean(0).sqrt()
    return found


def _doubtful(
    values: dict[str, Tensor], factors: Factors, tolerance: float
) -> dict[str, Bool[Tensor, " _r"]]:
    """Return which σ are small beside the largest of all layers, but above their own layer's rounding."""
    largest = _largest(values)
    doubtful = {}
    for name, s in values.items():
        u, v = factors[name]
        rounding = max(len(u), len(v)) * EPS * float(s.max()) if len(s) else 0.0
        doubtful[name] = (s <= tolerance * largest) & (s > rounding)
    return doubtful


def _largest(values: dict[str, Tensor]) -> float:
    return max((float(s.max()) for s in values.values() if len(s)), default=0.0)
