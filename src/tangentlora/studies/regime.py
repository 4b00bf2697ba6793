"""Is a prepared task's network in the NTK regime at an answer: the network's part of `theory.regime`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tangentlora.blocks import Factors, cast
from tangentlora.data import Examples
from tangentlora.models.update import updated
from tangentlora.studies.prepare import Prepared, scores
from tangentlora.tangent.linearize import linearize
from tangentlora.tangent.tangent import Tangent
from tangentlora.theory.regime import Regime, Step, Verdict, along, kernel_drift, kernel_ridge


@dataclass(frozen=True)
class RegimeReport:
    """What `theory.regime` says of an answer, and kernel regression with the same Jacobians beside it."""

    regime: Regime
    kernel_ridge: dict[str, float]
    ridge: float

    @property
    def verdict(self) -> Verdict:
        return self.regime.verdict

    def record(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return asdict(self) | {"verdict": self.verdict.name, "message": self.verdict.value}


def regime(
    prepared: Prepared, factors: Factors, taus: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
) -> RegimeReport:
    """Compare the real network at W + τδ with its tangent on the training and the test set.

    The network runs once over both sets for each τ, and is linearised anew at W + δ on the training set.
    Raises InputError for τ outside [0, 1] and factors that do not fit.
    """
    train = along_of(prepared, prepared.train, prepared.splits.train, factors, taus)
    held: tuple[Step, ...] = ()
    if prepared.test is not None and prepared.splits.test is not None:
        held = along_of(prepared, prepared.test, prepared.splits.test, factors, taus)
    with updated(prepared.network, prepared.targets, factors):  # no store: the weights are not those it knows
        there = linearize(
            prepared.network,
            prepared.splits.train.inputs,
            prepared.targets,
            batch_size=prepared.settings.batch_size,
            centred=prepared.train.centred,
        )
    drift = kernel_drift(prepared.train.jacobian, there.jacobian)
    return RegimeReport(Regime(train, held, drift), *baseline(prepared))


def along_of(
    prepared: Prepared, tangent: Tangent, examples: Examples, factors: Factors, taus: Sequence[float]
) -> tuple[Step, ...]:
    """Return the steps along W + τδ on one set."""
    real = {}
    for tau in taus:
        scaled = {name: (tau * u, v) for name, (u, v) in factors.items()}
        with updated(prepared.network, prepared.targets, scaled):
            real[tau] = prepared.network.predict(examples.inputs, prepared.settings.batch_size)
    single = cast(factors, "cpu", torch.float32)
    change = tangent.jacobian.at(single).forward()
    labels = torch.tensor(examples.labels)
    return along(prepared.problem.loss, labels, tangent.f0, change, real)


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
