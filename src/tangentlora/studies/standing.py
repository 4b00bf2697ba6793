"""Does an answer of a prepared task hold on its real network: the passes behind `theory.standing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.models.attach import attached
from tangentlora.models.network import Network
from tangentlora.models.update import updated
from tangentlora.problem.losses import Loss
from tangentlora.studies.measure import LinearisedSet
from tangentlora.studies.opened import Opened
from tangentlora.studies.prepare import Prepared
from tangentlora.theory.regime import set_standing
from tangentlora.theory.standing import Holds, Standing, falls_to, find_reach

_PASSES = 2
"""Units in the last place of the largest output by which two passes of one network may differ."""

Outputs = Mapping[str, Float[Tensor, "_n _k"]]
"""Outputs by the name of the set."""


def standing_of(
    prepared: Prepared, held_out: Sequence[LinearisedSet], factors: Factors, real: Outputs, objective: float
) -> Standing:
    """Return how an answer of the problem linearised at W stands on the real network.

    `real` are the network's outputs at it, `objective` the linearised P. Where it does not hold, the network
    runs over the training examples a few times more, for how far along the update its loss falls.
    """
    problem = prepared.problem
    labels = torch.tensor(prepared.splits.train.labels)
    linear = problem.outputs(factors)
    sets = {"train": set_standing(problem.loss, labels, problem.f0, linear, real["train"])}
    for part in held_out:
        before, z = part.outputs({}), part.outputs(factors)
        sets[part.which] = set_standing(problem.loss, torch.tensor(part.labels), before, z, real[part.which])
    penalty = objective - float(problem.loss.value(linear, problem.y).mean())
    found = Standing(sets, penalty, pass_rounding(prepared.network, problem.f0))
    return with_reach(found, loss_along(prepared, factors))


def standing_at(prepared: Prepared, before: Outputs, real: Outputs, penalty: float) -> Standing:
    """Return how an answer stands that the network was linearised at, so that both networks agree there."""
    problem = prepared.problem
    sets = {}
    for part, (_, rows) in prepared.sets.items():
        found = set_standing(problem.loss, torch.tensor(rows.labels), before[part], None, real[part])
        sets[part] = replace(found, linear_loss=found.real_loss, linear_accuracy=found.real_accuracy)
    return Standing(sets, penalty, pass_rounding(prepared.network, before["train"]))


def with_reach(found: Standing, loss: Callable[[float], float]) -> Standing:
    """Return the standing with how far along the update the loss falls, where that must be looked for."""
    train, verdict = found.train, found.verdict
    if found.holds or verdict in (Holds.NOT_FINITE, Holds.FITS_TOO_CLOSELY):
        return found
    if train.before_loss is None or train.real_loss is None:
        return found
    return replace(found, reach=find_reach(loss, {0.0: train.before_loss, 1.0: train.real_loss}))


def grade(
    outputs: dict[float, Float[Tensor, "_n _k"]],
    at: Callable[[float], Float[Tensor, "_n _k"]],
    loss: Loss,
    labels: Shaped[Tensor, "_n ..."],
) -> None:
    """Add outputs at the τ that tell how far along the update the loss falls, unless it falls all the way.

    `outputs` are those at some τ, 0 and 1 among them, and `at` gives those at another.
    """
    known = {tau: mean_loss(loss, z, labels) for tau, z in outputs.items()}
    if falls_to(known).tau == 1:
        return

    def value(tau: float) -> float:
        outputs[tau] = at(tau)
        return mean_loss(loss, outputs[tau], labels)

    find_reach(value, known)


def outputs_at(opened: Opened, factors: Factors, tau: float, batch_size: int) -> Float[Tensor, "N K"]:
    """Return the outputs of an adapter's network at W + τδ on the training examples."""
    scaled = {name: (tau * u, v) for name, (u, v) in factors.items()}
    with attached(opened.network.module, opened.targets, scaled):
        return opened.network.predict(opened.splits.train.inputs, batch_size)


def loss_along(prepared: Prepared, factors: Factors) -> Callable[[float], float]:
    """Return the real training loss at W + τuvᵀ as a function of τ, a pass over the training examples."""
    rows, loss = prepared.splits.train, prepared.problem.loss
    labels = torch.tensor(rows.labels)

    def at(tau: float) -> float:
        scaled = {name: (tau * u, v) for name, (u, v) in factors.items()}
        with updated(prepared.network, prepared.targets, scaled):
            z = prepared.network.predict(rows.inputs, prepared.settings.batch_size)
        return mean_loss(loss, z, labels)

    return at


def mean_loss(loss: Loss, z: Float[Tensor, "N K"], labels: Shaped[Tensor, "N ..."]) -> float:
    """Return the mean loss of outputs, in float64."""
    return float(loss.value(z.double().cpu(), labels).mean())


def pass_rounding(network: Network, outputs: Float[Tensor, "N K"]) -> float:
    """Return how far a loss can differ between two passes: it moves by twice its outputs at most."""
    dtype = next(network.module.parameters()).dtype
    return 2 * _PASSES * torch.finfo(dtype).eps * max(1.0, float(outputs.abs().max()))
