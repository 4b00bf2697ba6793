"""The local convex problem at W + δ: its gap, its second order, and how linear the way from W to there is.

Linearised at W + δ, the network's outputs are z(δ') = f(W+δ) + J(δ' − δ), so that the problem of this package
with f0 = f(W+δ) − Jδ has the real network's outputs, loss and gradient at δ. Derived; docs/theory.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors, cast, padded
from tangentlora.data import COMPLETION
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import balance, product_singular_values
from tangentlora.studies.opened import Opened
from tangentlora.studies.standing import grade, outputs_at
from tangentlora.tangent.linearize import linearize, linearize_at
from tangentlora.theory.certificate import Certificate, certify
from tangentlora.theory.first_order import USED
from tangentlora.theory.rank_reduction import reduce_rank
from tangentlora.theory.regime import Regime, along, kernel_drift
from tangentlora.theory.stationarity import Stationarity, classify
from tangentlora.theory.training import REST

OUTPUTS = 4096
"""The most outputs, N·K' contrasted, for which a network is linearised anew."""

_BYTES = 4e9  # the most that one linearisation may take, by the size of its first example

_HALF = 0.5  # τ on the way from W to W + δ


@dataclass(frozen=True, eq=False)
class LocalPart:
    """What holds of the network linearised at W + δ, and how far that is from its linearisation at W.

    `certificate` bounds the fall of L + λ Σ‖δ_t‖_* that is left in the local problem, `point` is its kind of
    point, `reduced` the ranks that Theorem 1 leaves of the columns used, with their outputs on the data.
    """

    certificate: Certificate
    point: Stationarity
    reduced: dict[str, int]
    regime: Regime

    def describe(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        point = {k: v for k, v in vars(self.point).items() if k not in ("kind", "escape")}
        verdict = self.regime.verdict
        return {
            "certificate": asdict(self.certificate),
            "point": point | {"kind": self.point.kind.name, "message": self.point.kind.value},
            "reduced_ranks": self.reduced,
            "regime": asdict(self.regime)
            | {"verdict": verdict.name, "message": verdict.value, "reach": asdict(self.regime.reach)},
        }


def why_not(opened: Opened, lam: Mapping[str, float], n_outputs: int) -> str | None:
    """Return why there is no local part, in words; None where there is one."""
    if opened.splits.task == COMPLETION:
        return "completions have a loss that is linear in the outputs, so the local problem has no minimiser"
    contrasts = opened.loss.contrasts(n_outputs)
    outputs = len(opened.splits.train) * (n_outputs if contrasts is None else len(contrasts))
    if outputs > OUTPUTS:
        return f"{outputs} outputs (examples times contrasts of labels) are more than {OUTPUTS}"
    values = list(lam.values())
    if not min(values) > 0:
        return "at λ = 0 the local problem need not have a minimiser"
    if not all(math.isclose(value, values[0], rel_tol=1e-9) for value in values):
        return f"λ differs between the layers, from {min(values):.3g} to {max(values):.3g}, and it has one"
    examples = opened.splits.train.inputs
    try:
        one = linearize(opened.network, examples[:1], opened.targets, centred=contrasts is not None)
        rows = one.jacobian.to(torch.float64).nbytes
    except InputError as refusal:  # what a gradient can be had of cannot always be linearised
        return f"it cannot be had ({refusal})"
    if rows * len(examples) > _BYTES:
        return (
            f"the Jacobian would take about {rows * len(examples) / 1e9:.1f} GB, more than {_BYTES / 1e9:g}"
        )
    return None


def local_part(
    opened: Opened,
    factors: Factors,
    lam: float,
    before: Float[Tensor, "N K"],
    after: Float[Tensor, "N K"],
    *,
    batch_size: int,
    progress: bool = False,
) -> LocalPart:
    """Linearise at W + δ and at W and return what holds there.

    `factors` are balanced, in float64; `before` and `after` the real outputs at W and W + δ. Takes two
    linearisations, each of K−1 backward passes over the training examples, and one more forward pass; a few
    where the loss does not fall all the way from W to W + δ. A point counts as at rest, and a curvature as
    negative, from `REST`, not from the 1e-6 of solvers: training does not come that far.
    Raises InputError as `linearize` does.
    """
    examples, y = opened.splits.train.inputs, torch.tensor(opened.splits.train.labels)
    network, targets = opened.network, opened.targets
    centred = opened.loss.contrasts(before.shape[1]) is not None
    there = linearize_at(
        network, examples, targets, factors, batch_size=batch_size, centred=centred, progress=progress
    )
    here = linearize(network, examples, targets, batch_size=batch_size, centred=centred, progress=progress)
    drift = kernel_drift(here.jacobian, there.jacobian)
    jacobian = there.jacobian.to(torch.float64)
    f0 = there.f0.double() - jacobian.at(factors).forward()
    problem = Problem(jacobian, f0, y, opened.loss, lam)
    middle = outputs_at(opened, factors, _HALF, batch_size)
    single = cast(factors, torch.float32)
    change = here.jacobian.at(single).forward()
    outputs = {0.0: before, _HALF: middle, 1.0: after}
    grade(outputs, lambda tau: outputs_at(opened, factors, tau, batch_size), opened.loss, y)
    steps = along(opened.loss, y, before, change, outputs)
    largest = max(float(product_singular_values(u, v)[:1].sum()) for u, v in factors.values())
    used = {t: balance(u, v, USED * largest) for t, (u, v) in factors.items()}
    # columns of zeros, as in B = 0, are room that the adapter has: at a saddle they are the way out
    whole = {t: padded({t: pair}, opened.factors[t][0].shape[1])[t] for t, pair in factors.items()}
    reduced = reduce_rank(problem, used)
    return LocalPart(
        certificate=certify(problem, factors),
        point=classify(problem, whole, tolerance=REST),
        reduced={t: u.shape[1] for t, (u, _) in reduced.items()},
        regime=Regime(steps, (), drift),
    )
