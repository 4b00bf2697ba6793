"""One adapter while it is compressed: its tangent, its real outputs, and corrections towards them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors, cast
from tangentlora.data import Examples
from tangentlora.models.attach import attached
from tangentlora.models.network import Network
from tangentlora.models.targets import Target
from tangentlora.problem.losses import CrossEntropy, Loss
from tangentlora.problem.objective import Problem, nuclear_norm
from tangentlora.progress import bar
from tangentlora.studies.compression import Measured, Row
from tangentlora.studies.prepare import scores
from tangentlora.tangent.jacobian import Jacobian, in_memory
from tangentlora.tangent.linearize import linearize_at
from tangentlora.tangent.operator import Operator
from tangentlora.theory.output_reduction import Directions, distance, parameters
from tangentlora.theory.output_refit import restore

_NETWORK_STEPS = 12  # Gauss–Newton steps on the real network, each one linearisation
_TANGENT_STEPS = 30  # and on the tangent, where the Jacobian stays
_EXACT = 1e-12  # of the largest output: where the tangent's outputs count as restored
_SAME = 1e-6  # of the largest output: where two ways to restore them count as equally good
_ROUNDING = 8  # units in the last place of the largest output that the network's own arithmetic may leave


@dataclass(frozen=True, eq=False)
class Compressor:
    """One adapter and its data: the tangent at W + δ, and the real network at any factors."""

    network: Network
    targets: tuple[Target, ...]
    given: Factors
    train: Examples
    test: Examples | None
    loss: Loss
    tolerance: float | None
    polish: bool
    batch_size: int
    progress: bool

    @cached_property
    def problem(self) -> Problem:
        """The problem linearised at W + δ, in δ' itself: its outputs at δ are those of the real network."""
        jacobian, there = self._linearised(self.given, self.progress)
        f0 = there - jacobian.at(cast(self.given, there)).forward()
        y = torch.tensor(self.train.labels, device=f0.device)
        return Problem(jacobian, f0, y, self.loss, 0.0)

    @cached_property
    def factors(self) -> Factors:
        """The given factors, in float64 where the problem is."""
        return cast(self.given, self.problem.f0)

    @cached_property
    def directions(self) -> Directions:
        return Directions.of(self.factors)

    def _linearised(self, factors: Factors, progress: bool) -> tuple[Operator, Float[Tensor, "N K"]]:
        tangent = linearize_at(
            self.network,
            self.train.inputs,
            self.targets,
            factors,
            batch_size=self.batch_size,
            centred=isinstance(self.loss, CrossEntropy),
            progress=progress,
        )
        where = self.network.device
        return tangent.jacobian.to(torch.float64, where), tangent.f0.to(where, torch.float64)

    @cached_property
    def _contrasts(self) -> Float[Tensor, "J K"]:
        f0 = self.problem.f0
        C = self.loss.contrasts(f0.shape[1])
        return torch.eye(f0.shape[1]).to(f0) if C is None else C.to(f0)

    @cached_property
    def _wanted(self) -> dict[str, Float[Tensor, "N K"]]:
        return self._outputs(self.given)

    @cached_property
    def _effect(self) -> dict[str, float]:
        """‖Δ‖_F of taking the given adapter off, per set."""
        bare = self._outputs(self.problem.zero())
        return {part: float(self._seen(z - self._wanted[part]).norm()) for part, z in bare.items()}

    def _outputs(self, factors: Factors, test: bool = True) -> dict[str, Float[Tensor, "_N K"]]:
        sets = {"train": self.train} | ({"test": self.test} if test and self.test is not None else {})
        with attached(self.network.module, self.targets, factors):
            return {
                part: self.network.predict(examples.inputs, self.batch_size).double()
                for part, examples in sets.items()
            }

    def orders(self, most: int | None) -> tuple[list[int], list[int]]:
        """Return two orders in which to give directions up: by the outputs, and by weight energy."""
        return self.directions.order_by_outputs(self.problem, most), self.directions.order_by_energy(most)

    def at_size(self, orders: Sequence[Sequence[int]], count: int) -> tuple[Factors, Factors]:
        """Return the last `count` directions of the first order as they are, and the best of all refitted."""
        kept = [self.directions.keep(order[len(order) - count :]) for order in orders]
        return kept[0], self.refitted(kept) if self.polish else kept[0]

    def refitted(self, starts: Sequence[Factors]) -> Factors:
        """Return the start, refitted to the outputs of the given adapter, that leaves it nearest.

        Each is refitted on the tangent. Of those that come to the same outputs the one with the least
        ‖δ' − δ‖_F is corrected on the real network, since inputs that are not in the data see the change of
        the weights; if none does, the one with the least error.
        """
        problem = self.problem.contrasted
        wanted = problem.outputs(self.factors)
        exact, same = (share * float(wanted.abs().max()) for share in (_EXACT, _SAME))

        def error(factors: Factors) -> Float[Tensor, "N J"]:
            return wanted - problem.outputs(factors)

        def rank(pair: tuple[Factors, Factors]) -> tuple[float, float]:
            missed = float(error(pair[1]).abs().max())
            return 0.0 if missed <= same else missed, distance(pair[1], self.factors)

        pairs = [
            (start, restore(start, error, lambda _: problem.rows, enough=exact, steps=_TANGENT_STEPS))
            for start in starts
        ]
        # with few directions the tangent's answer lies far away, where the network may differ
        nearest = min(pairs, key=rank)
        return self.polished(min(nearest, key=lambda factors: float(self._error(factors).norm())))

    def _error(self, factors: Factors) -> Float[Tensor, "N J"]:
        """Return what the contrasted outputs on the training data lack to be those of the given adapter."""
        lacking = self._wanted["train"] - self._outputs(factors, test=False)["train"]
        return lacking.to(self._contrasts) @ self._contrasts.T

    def polished(self, factors: Factors) -> Factors:
        """Return factors corrected on the real network, or as they are where that is not wanted."""
        if not self.polish:
            return factors
        with bar(_NETWORK_STEPS, "polishing", "step", self.progress) as shown:

            def jacobian(there: Factors) -> Jacobian:
                shown.update()
                seen = self._linearised(there, False)[0].combine_outputs(self._contrasts)
                return in_memory(seen, "compression")

            return restore(
                factors,
                self._error,
                jacobian,
                enough=max(self._rounding, self.tolerance or 0.0),
                steps=_NETWORK_STEPS,
            )

    @cached_property
    def _rounding(self) -> float:
        """Errors this small are those of the network's own arithmetic."""
        dtype = next(self.network.module.parameters()).dtype
        return _ROUNDING * torch.finfo(dtype).eps * float(self._wanted["train"].abs().max())

    def row(self, name: str, factors: Factors) -> Row:
        """Return the measurements of the real network at W + uvᵀ."""
        outputs = self._outputs(factors)
        measured = {part: self._measured(part, z) for part, z in outputs.items()}
        return Row(
            name,
            {layer: u.shape[1] for layer, (u, _) in factors.items()},
            parameters(factors),
            nuclear_norm(factors),
            measured["train"],
            measured.get("test"),
        )

    def largest_change(self, factors: Factors) -> float:
        """Return max |Δ| on the training data."""
        z = self._outputs(factors, test=False)["train"]
        return float(self._seen(z - self._wanted["train"]).abs().max())

    def _measured(self, part: str, z: Float[Tensor, "N K"]) -> Measured:
        examples = self.test if part == "test" and self.test is not None else self.train
        change, effect = self._seen(z - self._wanted[part]), self._effect[part]
        relative = float(change.norm()) / effect if effect else None
        loss = float(self.loss.value(z, torch.tensor(examples.labels)).mean())
        largest = float(change.abs().max())
        if not isinstance(self.loss, CrossEntropy):
            return Measured(None, loss, largest, relative)
        y = torch.tensor(examples.labels, device=z.device)
        was, now = self._wanted[part].argmax(1) == y, z.argmax(1) == y
        lost, gained = int((was & ~now).sum()), int((~was & now).sum())
        accuracy = scores(z, examples.labels, part)[f"{part}_accuracy"]
        return Measured(accuracy, loss, largest, relative, lost, gained)

    def _seen(self, z: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return what the loss sees of outputs: for cross-entropy all but their mean over the K."""
        C = self._contrasts.to(z)
        return z @ C.T @ C
