"""A PEFT adapter → a smaller one in a folder, checked by loading it with PEFT."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from tangentlora.adapters import (
    loaded_outputs,
    move_adapter,
    remove_adapter,
    saved_modules,
    write_adapter,
    zeroed,
)
from tangentlora.blocks import Factors, cast
from tangentlora.data import Splits
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tangentlora.models.brought import copy_processor
from tangentlora.models.fresh import Fresh, whole_modules
from tangentlora.models.precise import in_double
from tangentlora.models.readouts import Readout
from tangentlora.places import require_writable
from tangentlora.report.folder import RunFolder
from tangentlora.report.wording import relative
from tangentlora.studies.compress import compress_update
from tangentlora.studies.compression import Compression
from tangentlora.studies.limits import check_compression
from tangentlora.studies.opened import Opened, open_any
from tangentlora.studies.versions import versions

FORMAT = 1
"""The version of compression.json."""

_LOADED = {torch.float32: 1e-6, torch.float64: 1e-6}
_LOADED_COARSE = 1e-2
"""Largest difference of an output as PEFT loads the adapter from the one claimed, relative to the largest
output; the second for networks in half precision, whose own outputs have two or three digits."""

_BROKEN = 1e3
"""Times that tolerance: an adapter that does not stand for its factors, and not rounding."""


@final
@dataclass(frozen=True)
class Written:
    """The adapter that was written: how far its outputs are off as PEFT loads it, relative to the largest.

    `note` says on which network that was measured, where it was not the one that was loaded for it.
    """

    folder: Path
    error: float
    tolerance: float
    note: str = ""

    @property
    def message(self) -> str:
        met = "met" if self.error <= self.tolerance else "not met"
        text = (
            f"Written to {self.folder}; as PEFT loads it, an output differs from the one claimed by "
            f"{relative(self.error)} of the largest at most (tolerance {relative(self.tolerance)}: {met})."
        )
        return f"{text} {self.note}".strip()


def compress_adapter(
    opened: Opened,
    output_dir: Path | None = None,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    polish: bool = True,
    batch_size: int = 32,
    progress: bool = False,
) -> tuple[Compression, Written | None]:
    """Compress an adapter on its training examples; write adapter/ and compression.json into `output_dir`.

    See `compress_update` for `rank`, `tolerance` and `polish`. Whole weights that the adapter saved are
    carried over, and of a live network those that its base's files do not hold; so is a tokenizer or
    processor of the adapter's own. The written adapter is loaded with PEFT, on the base loaded anew or with
    zeros in the network where those weights belong, and its outputs on the training examples are compared
    with those claimed; only then does it take the place of what was in `output_dir` before. Nothing is
    written where every rank is 0 and no whole weight is left to carry.
    Raises InputError as `compress_update` and `saved_modules` do, for an `output_dir` that cannot be written,
    and where PEFT's outputs are far from those claimed.
    """
    module = opened.network.module
    fresh = None if output_dir is None or opened.fresh is None else opened.fresh()
    saved = opened.adapter.saved | ({} if fresh is None else whole_modules(module, fresh.differing))
    saved_modules(module, saved, tuple(target.module for target in opened.targets))  # refused before the work
    if output_dir is not None:
        require_writable(output_dir)
    if progress:
        print(opened.check.leaving("dev").told(), file=sys.stderr)
    cut = opened.cut(progress=progress)
    found = compress_update(
        opened.network,
        opened.targets,
        opened.factors,
        opened.splits.train,
        opened.splits.test,
        loss=opened.loss,
        rank=rank,
        tolerance=tolerance,
        polish=polish,
        batch_size=batch_size,
        progress=progress,
    )
    found = replace(found, cut=cut)
    if output_dir is None:
        return found, None
    written = _write(opened, found.factors, saved, fresh, output_dir / "adapter", batch_size)
    record = {
        "format": FORMAT,
        "tangentlora": version("tangentlora"),
        "adapter": opened.adapter.name,
        "model": opened.network.name,
        "data": opened.splits.source,
        "data_check": opened.check.leaving("dev").describe(),
        "task": opened.splits.task.name,
        "loss": opened.loss.name,
        "readout": opened.network.reader.describe(),
        "notes": list(opened.notes),
        "asked": {"rank": rank, "tolerance": tolerance, "polish": polish},
        "carried": sorted(saved),
        "written": written and {"error": written.error, "tolerance": written.tolerance, "note": written.note},
        "versions": versions(),
        **found.record(),
    }
    RunFolder(output_dir).write_json("compression.json", record)
    return found, written


def compress(
    adapter: nn.Module | str | Path,
    data: Splits | str,
    output_dir: Path | None = None,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    polish: bool = True,
    processor: Any = None,
    readout: Readout | str | None = None,
    adapter_name: str | None = None,
    batch_size: int = 32,
    progress: bool = False,
    **settings: Any,
) -> Compression:
    """Make a PEFT adapter smaller with its outputs on the training data kept, and measure what was reached.

    `adapter` is a live PeftModel, given with its `processor`, `adapter_name` where several of its adapters
    are active and, unless its own head is read, a `readout` object; or an adapter folder or hub id, read as
    `readout`, a name, says. `data` are `Splits` or what the command line's --data takes, and `settings` other
    fields of `Settings`. With `output_dir` the answer is written as a PEFT adapter, output_dir/adapter. A
    live model stays as it is. Raises InputError as `open_any` and `compress_adapter` do.
    Source: Jang, Lee, Ryu 2024, Theorem 1, for the count; docs/theory.md, "Compressing an update".
    """
    check_compression(rank, tolerance)  # before anything is loaded
    if output_dir is not None:
        require_writable(output_dir)
    with open_any(
        adapter, data, settings, processor=processor, readout=readout, adapter_name=adapter_name
    ) as opened:
        found, _ = compress_adapter(
            opened,
            output_dir,
            rank=rank,
            tolerance=tolerance,
            polish=polish,
            batch_size=batch_size,
            progress=progress,
        )
    return found


def _write(
    opened: Opened,
    factors: Factors,
    saved: dict[str, Tensor],
    fresh: Fresh | None,
    folder: Path,
    batch_size: int,
) -> Written | None:
    """Write the adapter, compare its outputs as PEFT loads it with those claimed, and put it in its place."""
    network = opened.network
    if saved and not any(u.shape[1] for u, _ in factors.values()):  # PEFT needs a layer to carry the rest by
        first = opened.targets[0]
        m, n = first.shape
        factors = factors | {first.name: (torch.zeros(m, 1), torch.zeros(n, 1))}
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adapter.", suffix=".partial", dir=folder.parent) as partial:
        where = write_adapter(
            factors,
            opened.targets,
            Path(partial) / "adapter",
            module=network.module,
            base_model=opened.adapter.base_model or network.name,
            revision=opened.adapter.revision,
            saved=saved,
        )
        if where is None:
            remove_adapter(folder)
            return None
        error = _difference(opened, factors, saved, fresh, where, batch_size)
        dtype = next(network.module.parameters()).dtype
        written = Written(folder, error, _LOADED.get(dtype, _LOADED_COARSE), fresh.note if fresh else "")
        if not error <= _BROKEN * written.tolerance:  # not >, which a NaN would pass
            raise InputError(
                f"got outputs that differ by {error:.1e} of the largest after loading the adapter for "
                f"{folder} with PEFT, expected those of its factors, so that nothing was written: update "
                "peft, and report the versions that `tangentlora doctor` prints"
            )
        copy_processor(opened.adapter.folder, where)
        move_adapter(where, folder)
    return written


def _difference(
    opened: Opened,
    factors: Factors,
    saved: dict[str, Tensor],
    fresh: Fresh | None,
    where: Path,
    batch_size: int,
) -> float:
    """Return the largest difference of an output with the adapter in `where`, over the largest output."""
    inputs, stored = opened.splits.train.inputs, cast(factors, torch.float32)  # as the file has them
    with in_double(opened.network) as exact:
        with attached(exact.module, opened.targets, stored):
            claimed = exact.predict(inputs, batch_size).double()
        if fresh is None or fresh.network is None:
            with zeroed(exact.module, saved):
                loaded = loaded_outputs(exact, where, inputs, batch_size).double()
    if fresh is not None and fresh.network is not None:
        with in_double(fresh.network) as exact:
            loaded = loaded_outputs(exact, where, inputs, batch_size).double()
    scale = max(float(claimed.abs().max()), torch.finfo(torch.float32).tiny)
    return float((loaded - claimed).abs().max()) / scale
