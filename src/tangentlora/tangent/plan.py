"""What linearising will cost, before it begins: bytes in the store, rows to solve with, memory and seconds.

The rows that compression leaves of an example are at most its tokens; how many depends on the readout and on
the network. So either bounds are told, from shapes alone, or `trial_run` linearises a few examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tangentlora.models.network import Network, batched
from tangentlora.models.targets import Target
from tangentlora.tangent.store import open_shards


@dataclass(frozen=True)
class ProblemShape:
    """What the memory of a solver depends on: N, K outputs, K' contrasts, and R_t rows of (m,n) by layer.

    K is of the outputs whose rows are held, and so K' where the tangent is centred.
    `bands` has in how many bands of columns a layer's rows lie, H_t; a layer that it lacks has all columns.
    """

    examples: int
    outputs: int
    contrasts: int
    rows: Mapping[str, int]
    shapes: Mapping[str, tuple[int, int]]
    bands: Mapping[str, int] = field(default_factory=dict)

    @property
    def entries(self) -> dict[str, int]:
        """The numbers of g that are held of each layer for one output, R_t m/H_t."""
        return {t: count * self.shapes[t][0] // self.bands.get(t, 1) for t, count in self.rows.items()}

    @property
    def tangent_bytes(self) -> int:
        """Bytes of the rows as they are read, in float32: 4 Σ_t R_t (n + K m/H_t)."""
        return 4 * self.numbers(self.outputs)

    @property
    def problem_bytes(self) -> int:
        """Bytes of the rows of a problem, in float64: of K outputs, and g of the K' contrasts if fewer."""
        apart = self.numbers(self.contrasts) - self.numbers(0) if self.contrasts < self.outputs else 0
        return 8 * (self.numbers(self.outputs) + apart)

    def share(self, count: int) -> ProblemShape:
        """Return the shape of what one of so many processes holds."""
        rows = {name: math.ceil(number / count) for name, number in self.rows.items()}
        return replace(self, examples=math.ceil(self.examples / count), rows=rows)

    def numbers(self, outputs: int) -> int:
        """Return how many numbers the rows of so many outputs are: Σ_t R_t (n + outputs·m/H_t)."""
        inputs = sum(count * self.shapes[t][1] for t, count in self.rows.items())
        return inputs + outputs * sum(self.entries.values())


def predicted_peak(
    shape: ProblemShape, *, process: int = 0, solver: int = 0, block: int | None = None
) -> int:
    """Return the bytes that are held at once while a problem of this shape is solved.

    `process` is what the process holds already, the network with it, and `solver` what the solver keeps of
    its own. The rows are all in memory, as they were read and as the problem holds them, or they are read
    from the store and `block` bytes of it are held at a time.
    """
    rows = shape.tangent_bytes + shape.problem_bytes
    return process + solver + (rows if block is None else min(block, rows))


@dataclass(frozen=True)
class Rates:
    """What one example costs, at each of some lengths in increasing order; between them it is interpolated.

    `rows` counts the rows of each layer, `stored` bytes in the store. `seconds` are those per padded token,
    None where nothing was timed. `batch_bytes` is the memory of the largest batch. Where nothing was
    `measured` these are upper bounds.
    """

    lengths: tuple[int, ...]
    rows: Mapping[str, tuple[float, ...]]
    stored: tuple[float, ...]
    batch_bytes: int
    seconds: float | None = None
    measured: bool = False

    def bytes_stored(self, lengths: Sequence[int]) -> int:
        """Return the bytes that examples of these lengths take in the store."""
        return self._sum(self.stored, lengths)

    def rows_of(self, lengths: Sequence[int]) -> dict[str, int]:
        """Return the rows that examples of these lengths have, by layer."""
        return {name: self._sum(counts, lengths) for name, counts in self.rows.items()}

    def duration(self, lengths: Sequence[int], batch_size: int) -> float | None:
        """Return the seconds that linearising examples of these lengths takes, in batches of similar ones."""
        return None if self.seconds is None else self.seconds * padded_tokens(lengths, batch_size)

    def _sum(self, values: Sequence[float], lengths: Sequence[int]) -> int:
        return round(float(np.interp(lengths, self.lengths, values).sum())) if lengths else 0


def padded_tokens(lengths: Sequence[int], batch_size: int) -> int:
    """Return what passes through the network in batches of examples of similar length, padding included."""
    return sum(tokens for _, tokens in batched(lengths, batch_size))


def bounded(
    network: Network,
    targets: Sequence[Target],
    lengths: Sequence[int],
    outputs: int,
    batch_size: int,
) -> Rates:
    """Return upper bounds for texts of these lengths that take no pass: a row per token, activations of all.

    Autograd saves at most about twice the inputs and outputs of all linear layers.
    """
    known = sorted(set(lengths))
    wide = {t.name: t.shape[1] + outputs * t.shape[0] for t in targets}
    # rows that are zero outside one block of columns may be more, where they take fewer numbers in all
    blocks = {t.name: 1 + outputs * t.shape[0] / t.shape[1] for t in targets}
    linear = sum(
        sum(weight.shape)
        for weight in (p for m in network.module.modules() for p in m.parameters(recurse=False))
        if weight.dim() == 2
    )
    width = next(network.module.parameters()).element_size()
    tokens = padded_tokens([known[-1]] * min(batch_size, len(lengths)), batch_size)
    captured = sum(wide.values()) * width + 2 * 8 * max(wide.values())
    return Rates(
        tuple(known),
        {name: tuple(most * length for length in known) for name, most in blocks.items()},
        tuple(4.0 * length * sum(wide.values()) + 4 * outputs + 8 * len(wide) for length in known),
        batch_bytes=tokens * (2 * width * linear + captured),
    )


def rows_in_store(folder: Path, targets: Sequence[Target]) -> dict[str, int]:
    """Return the rows of each layer that a tangent in the store has; its shards are not read for that.

    Raises InputError where the manifest is damaged, or a shard is missing or has another size.
    """
    from safetensors import safe_open

    rows = {target.name: 0 for target in targets}
    for shard in open_shards(folder):
        with safe_open(folder / shard.file, "pt") as file:
            for name in rows:
                rows[name] += file.get_slice(f"{name}/g").get_shape()[0]
    return rows
