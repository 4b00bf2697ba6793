"""Accuracy and loss of the linearised network on every set, cheap enough for each logged epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors, cast
from tangentlora.models.update import updated
from tangentlora.studies.prepare import Prepared, scores
from tangentlora.tangent.operator import Operator


@dataclass(frozen=True, eq=False)
class LinearisedSet:
    """One labelled set as the tangent sees it: its outputs at any factors, up to a common shift.

    Accuracy and cross-entropy do not change when all outputs of an example move together, so K−1 contrasts
    C (K−1,K) suffice: z = Cᵀ(C f0 + (CJ)δ). The Jacobian stays in float32.
    """

    which: str
    labels: tuple[int, ...]
    f0: Float[Tensor, "N J"]
    jacobian: Operator
    C: Float[Tensor, "J K"]

    def outputs(self, factors: Factors, pretrained: bool = True) -> Float[Tensor, "N K"]:
        """Return the centred outputs at uvᵀ; without `pretrained` those of the update alone, Jδ."""
        single = cast(factors, self.f0.device, torch.float32)
        change = self.jacobian.at(single).forward()
        return (self.f0 + change if pretrained else change) @ self.C

    def scores(self, factors: Factors, pretrained: bool = True) -> dict[str, float]:
        """Return accuracy in [0, 1] and mean cross-entropy in nats, named after the set."""
        return scores(self.outputs(factors, pretrained), self.labels, self.which)


def linearised_scores(sets: Iterable[LinearisedSet], factors: Factors) -> dict[str, float]:
    """Return accuracy and loss of the linearised network at uvᵀ on these sets."""
    result: dict[str, float] = {}
    for part in sets:
        result |= part.scores(factors)
    return result


def linearised_sets(prepared: Prepared) -> list[LinearisedSet]:
    """Return the sets of `prepared.sets`."""
    problem = prepared.problem
    C = problem.loss.contrasts(problem.jacobian.n_outputs)
    contrasts = torch.eye(problem.jacobian.n_outputs) if C is None else C.float()
    contrasts = contrasts.to(problem.f0.device)
    sets = []
    for which, (tangent, examples) in prepared.sets.items():
        jacobian = tangent.jacobian.to(torch.float32, contrasts.device).combine_outputs(contrasts)
        f0 = tangent.f0.to(contrasts) @ contrasts.T
        sets.append(LinearisedSet(which, examples.labels, f0, jacobian, contrasts))
    return sets


def dev_merit(measured: Mapping[str, float | None]) -> tuple[bool, float, float]:
    """Return what every choice by the dev set compares: the higher accuracy, then the lower loss, is better.

    Scores whose loss is not finite (None where they were read from JSON) come after all whose loss is.
    """
    accuracy, loss = measured["dev_accuracy"], measured["dev_loss"]
    if accuracy is None or loss is None or not math.isfinite(loss):
        return False, 0.0, 0.0
    return True, accuracy, -loss


def real_outputs(prepared: Prepared, factors: Factors) -> dict[str, Float[Tensor, "_n _k"]]:
    """Return the outputs of the real network at W + uvᵀ on `prepared.sets`, a pass over each."""
    network, size = prepared.network, prepared.settings.batch_size
    with updated(network, prepared.targets, factors):
        return {part: network.predict(rows.inputs, size) for part, (_, rows) in prepared.sets.items()}


def scores_of(prepared: Prepared, outputs: Mapping[str, Float[Tensor, "_n _k"]]) -> dict[str, float]:
    """Return accuracy and loss of outputs on `prepared.sets`."""
    result: dict[str, float] = {}
    for which, (_, examples) in prepared.sets.items():
        result |= scores(outputs[which], examples.labels, which)
    return result


def real_scores(prepared: Prepared, factors: Factors) -> dict[str, float]:
    """Return accuracy and loss of the real network at W + uvᵀ on `prepared.sets`, a pass over each."""
    return scores_of(prepared, real_outputs(prepared, factors))
