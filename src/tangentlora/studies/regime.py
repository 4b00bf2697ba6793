"""Is a prepared task's network in the NTK regime at an answer: the network's part of `theory.regime`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors, cast
from tangentlora.data import Examples
from tangentlora.models.update import updated
from tangentlora.problem.objective import nuclear_norm
from tangentlora.studies.prepare import Prepared, scores
from tangentlora.studies.standing import grade, pass_rounding
from tangentlora.tangent.linearize import linearize
from tangentlora.theory.regime import Regime, Verdict, along, kernel_drift, kernel_ridge, set_standing
from tangentlora.theory.standing import Standing


@dataclass(frozen=True)
class RegimeReport:
    """What `theory.regime` says of an answer, and kernel regression with the same Jacobians beside it."""

    regime: Regime
    kernel_ridge: dict[str, float]
    ridge: float
    standing: Standing | None = None

    @property
    def verdict(self) -> Verdict:
        return self.regime.verdict

    def record(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        values = asdict(self) | {"verdict": self.verdict.name, "message": self.verdict.value}
        del values["standing"]
        return values | {"reach": asdict(self.regime.reach)}


def regime(
    prepared: Prepared, factors: Factors, taus: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
) -> RegimeReport:
    """Compare the real network at W + τδ with its tangent on the training and the test set.

    The network runs once over both sets for each τ, and is linearised anew at W + δ on the training set. With
    0 and 1 among the τ it is judged if the answer holds there, and where the training loss does not fall all
    the way, a few more τ of that set say how far it does.
    Raises InputError for τ outside [0, 1] and factors that do not fit.
    """
    loss, rows = prepared.problem.loss, prepared.splits.train
    outputs = {"train": {tau: _outputs_at(prepared, rows, factors, tau) for tau in taus}}
    tangents = {"train": (prepared.train, rows)}
    if prepared.test is not None and prepared.splits.test is not None:
        tangents["test"] = prepared.test, prepared.splits.test
        outputs["test"] = {tau: _outputs_at(prepared, tangents["test"][1], factors, tau) for tau in taus}
    whole = {0.0, 1.0} <= set(taus)
    if whole:
        labels = torch.tensor(rows.labels)
        grade(outputs["train"], lambda tau: _outputs_at(prepared, rows, factors, tau), loss, labels)
    changes = {
        part: tangent.jacobian.at(cast(factors, "cpu", torch.float32)).forward()
        for part, (tangent, _) in tangents.items()
    }
    steps, sets = {}, {}
    for part, (tangent, examples) in tangents.items():
        labels = torch.tensor(examples.labels)
        steps[part] = along(loss, labels, tangent.f0, changes[part], outputs[part])
        if whole:
            linear = tangent.f0.double() + changes[part].double()
            sets[part] = set_standing(loss, labels, tangent.f0, linear, outputs[part][1.0])
    with updated(prepared.network, prepared.targets, factors):  # no store: the weights are not those it knows
        there = linearize(
            prepared.network,
            prepared.splits.train.inputs,
            prepared.targets,
            batch_size=prepared.settings.batch_size,
            centred=prepared.train.centred,
        )
    drift = kernel_drift(prepared.train.jacobian, there.jacobian)
    found = Regime(steps["train"], steps.get("test", ()), drift)
    standing = None
    if whole:
        penalty = prepared.problem.lam * nuclear_norm(factors)
        slack = pass_rounding(prepared.network, prepared.train.f0)
        standing = Standing(sets, penalty, slack, found.reach)
    return RegimeReport(found, *baseline(prepared), standing)


def _outputs_at(prepared: Prepared, examples: Examples, factors: Factors, tau: float) -> Float[Tensor, "N K"]:
    """Return the outputs of the real network at W + τδ on one set."""
    scaled = {name: (tau * u, v) for name, (u, v) in factors.items()}
    with updated(prepared.network, prepared.targets, scaled):
        return prepared.network.predict(examples.inputs, prepared.settings.batch_size)


def baseline(prepared: Prepared) -> tuple[dict[str, float], float]:
    """Return the scores of kernel regression onto one-hot labels, and its ridge.

    Its outputs are regression values and no logits: read the accuracies.
    """
    problem, splits = prepared.problem, prepared.splits
    targets = torch.nn.functional.one_hot(problem.y, problem.f0.shape[1]).to(problem.f0)
    delta, mu = kernel_ridge(problem, targets)
    single = {name: block.float().cpu() for name, block in delta.items()}
    result: dict[str, float] = {}
    sets = (("train", prepared.train, splits.train), ("test", prepared.test, splits.test))
    for which, tangent, examples in sets:
        if tangent is not None and examples is not None:
            z = tangent.f0 + tangent.jacobian.forward(single)
            result |= scores(z, examples.labels, which)
    return result, mu
