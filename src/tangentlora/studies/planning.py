"""A plan before long work: what the sets of one problem will take, by what the store has and a few examples.

Sets whose tangent is in the store already take nothing. Small sets of texts are planned from shapes alone, by
upper bounds; where there are many examples, or the bounds do not fit, a few are tried (`tangent.trial_run`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from tangentlora import processes
from tangentlora.models.network import Features, Network, Reader, length_of
from tangentlora.models.targets import Target
from tangentlora.solvers.memory import solve_bytes
from tangentlora.studies.plan import Plan, PlannedSet
from tangentlora.studies.resources import free_disk, held_memory, usable_memory
from tangentlora.tangent.linearize import identity_of
from tangentlora.tangent.plan import (
    ProblemShape,
    Rates,
    bounded,
    predicted_peak,
    rows_in_store,
)
from tangentlora.tangent.shared_store import WHOLE_BYTES, is_stored
from tangentlora.tangent.store_writer import SHARD_BYTES
from tangentlora.tangent.tangent import key_of
from tangentlora.tangent.trial_run import measured

SMALL = 512
"""Fewer texts than these are planned from shapes alone, unless they might not fit."""

_KEPT = 1.1  # an allocator keeps some of what is freed: up to a tenth was measured
_BLOCK = 5 * SHARD_BYTES  # shards that are mapped at a time, and some of their rows in float64


@final
@dataclass(frozen=True, eq=False)
class EncodedReader:
    """A reader that has one list of inputs encoded already; in all else it is the reader that did it."""

    reader: Reader
    inputs: Sequence[Any]
    features: list[Features]

    def encode(self, inputs: Sequence[Any]) -> list[Features]:
        return self.features if inputs is self.inputs else self.reader.encode(inputs)

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        return self.reader.collate(features)

    def outputs(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "B K"]:
        return self.reader.outputs(tensors)

    def describe(self) -> dict[str, Any]:
        return self.reader.describe()


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """A set's inputs, encoded once for its plan and for linearising it."""

    inputs: Sequence[Any]
    features: list[Features]

    def read_by(self, network: Network) -> Network:
        """Return the network that need not encode them again."""
        return replace(network, reader=EncodedReader(network.reader, self.inputs, self.features))


def plan_for(
    network: Network,
    sets: Mapping[str, EncodedSet],
    targets: Sequence[Target],
    *,
    outputs: int,
    centred: bool,
    batch_size: int,
    folder: Path,
    memory: int | None = None,
) -> Plan:
    """Return the plan of linearising sets into the store `folder` and of solving on the one called `train`.

    `outputs` is K; the tangents are `centred` or not. `memory` is that of each process in bytes, by default
    what is available. Several processes plan together. Raises InputError in the cases of `capture`
    and for a store that is damaged.
    """
    stores = {
        part: folder / key_of(identity_of(network, each.features, targets, batch_size, centred))
        for part, each in sets.items()
    }
    held = outputs - 1 if centred else outputs  # those whose rows are made, stored and solved with
    missing = [part for part, store in stores.items() if not is_stored(store)]
    features = [example for part in missing for example in sets[part].features]

    def with_rates(rates: Rates | None) -> Plan:
        shapes = {target.name: target.shape for target in targets}
        planned, problems = [], {}
        for part, each in sets.items():
            lengths = [length_of(example) for example in each.features]
            new = rates if part in missing else None
            rows = new.rows_of(lengths) if new else rows_in_store(stores[part], targets)
            whole = ProblemShape(len(lengths), held, held, rows, shapes)
            problems[part] = whole.share(processes.count()) if whole.tangent_bytes > WHOLE_BYTES else whole
            planned.append(
                PlannedSet(
                    name=part,
                    examples=len(lengths),
                    tokens=sum(lengths) if _are_texts(each.features) else None,
                    ready=new is None,
                    stored=new.bytes_stored(lengths) if new else 0,
                    dense=4 * len(lengths) * outputs * sum(m * n for m, n in shapes.values()),
                    seconds=_each(new.duration(lengths, batch_size)) if new else None,
                )
            )
        train = problems.pop("train")
        beside = sum(shape.tangent_bytes for shape in problems.values())
        stored = sum(part.stored for part in planned)
        # a shard is held as it comes, put together, and as it is written
        batch = rates.batch_bytes + 3 * min(stored, SHARD_BYTES) if rates else 0
        process = held_memory(network.device)

        def peak(more: int) -> int:
            return process + round(_KEPT * more)

        return Plan(
            sets=tuple(planned),
            outputs=outputs,
            backward=held,
            measured=rates is None or rates.measured,
            folder=folder,
            free=free_disk(folder),
            memory=memory or usable_memory(network.device),
            linearising=peak(batch),
            solving=peak(beside + predicted_peak(train, solver=solve_bytes(train))),
            in_blocks=peak(predicted_peak(train, block=_BLOCK, solver=solve_bytes(train, blocks=True))),
        )

    def made() -> Plan:
        if not missing:
            return with_rates(None)
        if len(features) < SMALL and _are_texts(features):
            lengths = [length_of(example) for example in features]
            plan = with_rates(bounded(network, targets, lengths, held, batch_size))
            if plan.fits and not plan.reads_blocks:
                return plan
        return with_rates(measured(network, features, targets, batch_size, centred))

    return agreed(processes.gather_values(made(), "the plan"))


def agreed(plans: Sequence[Plan]) -> Plan:
    """Return one plan for all processes: the first, with the least room and the greatest need of any."""
    return replace(
        plans[0],
        free=min(plan.free for plan in plans),
        memory=min(plan.memory for plan in plans),
        linearising=max(plan.linearising for plan in plans),
        solving=max(plan.solving for plan in plans),
        in_blocks=max(plan.in_blocks for plan in plans),
    )


def _each(seconds: float | None) -> float | None:
    """Return the seconds of each process, where the work is shared."""
    return None if seconds is None else seconds / processes.count()


def _are_texts(features: Sequence[Features]) -> bool:
    return all("input_ids" in example for example in features)
