"""Factors → a PEFT adapter folder: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tangentlora.adapters.saved import saved_modules
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.models.targets import Target
from tangentlora.models.update import require_fit

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the network's own names."""

LoraPair: TypeAlias = tuple[Float[Tensor, "_r _n"], Float[Tensor, "_m _r"]]
"""`lora_A` and `lora_B` of one module, in float32 on the CPU."""


def write_adapter(
    factors: Factors,
    targets: Sequence[Target],
    folder: Path,
    *,
    module: nn.Module,
    base_model: str,
    revision: str | None = None,
    saved: Mapping[str, Tensor] | None = None,
) -> Path | None:
    """Write δ_t = u_t v_tᵀ as a PEFT adapter of `module`; return its folder, or None when every rank is 0.

    `lora_B` = u_t (m,r) and `lora_A` = v_tᵀ (r,n) in float32, with lora_alpha = r in every layer, so that the
    scaling is 1 and the update is BA as given. The rank of a layer is its number of columns, may differ from
    layer to layer, and a layer of rank 0 is left out. The parts of one fused weight share an adapter whose
    rank is the sum of theirs: A stacked, B with the columns of each part in that part's rows. `base_model`
    and `revision` say where PEFT finds the network. `saved` holds whole weights that belong to the adapter
    (`Adapter.saved`, by the network's own names), which PEFT then loads in place of the network's.

    PEFT knows no adapter without layers. When every rank is 0 the answer is the pretrained network itself: an
    adapter left in `folder` by an earlier run is removed, since it is another answer.

    Both files are written beside `folder` first. The configuration, without which PEFT reads nothing, leaves
    first and arrives last: a run that is killed never leaves the files of two adapters together. Other files
    in `folder` stay. Equal arguments give equal bytes.

    Raises `InputError` when factors, targets and network do not fit (see `require_fit`), an entry is not
    finite in float32, or `folder` is a file, and in the cases of
    :func:`tangentlora.adapters.saved.saved_modules`.
    """
    require_fit(module, targets, factors)
    kept = saved or {}
    modules = saved_modules(module, kept, tuple({target.module for target in targets}))
    pairs = _lora_pairs(factors, targets, module)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"got {folder}, which is a file, expected a folder; choose another path.")
    if not pairs:
        remove_adapter(folder)
        return None
    transposed = any(target.transposed for target in targets if target.module in pairs)
    config = _lora_config(pairs, module, transposed, base_model, revision)
    config.modules_to_save = modules or None
    tensors = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
    for name, (A, B) in pairs.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = A
        tensors[f"{PREFIX}{name}.lora_B.weight"] = B
    _replace(folder, config, tensors)
    return folder


def remove_adapter(folder: Path) -> None:
    """Take an adapter's two files out of a folder; other files in it stay."""
    for name in (CONFIG, WEIGHTS):
        (folder / name).unlink(missing_ok=True)


def move_adapter(written: Path, folder: Path) -> None:
    """Move the files in `written` into `folder` on the same disk, in place of those of an earlier adapter.

    The configuration, without which PEFT reads nothing, leaves first and arrives last.
    """
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    for path in sorted(written.iterdir(), key=lambda path: path.name == CONFIG):
        os.replace(path, folder / path.name)


def _lora_pairs(factors: Factors, targets: Sequence[Target], module: nn.Module) -> dict[str, LoraPair]:
    """Return A (r,n) and B (m,r) per module of positive rank, the parts of a fused weight merged."""
    parts: dict[str, list[Target]] = {}
    for target in targets:
        parts.setdefault(target.module, []).append(target)
    pairs: dict[str, LoraPair] = {}
    for name, fused in parts.items():
        m, n = replace(fused[0], rows=None).weight(module).shape
        r = sum(factors[target.name][0].shape[1] for target in fused)
        A, B = torch.zeros(r, n), torch.zeros(m, r)
        start = 0
        for target in fused:
            u, v = (factor.detach().to("cpu", torch.float32) for factor in factors[target.name])
            columns = slice(start, start := start + u.shape[1])
            A[columns] = v.T
            B[slice(*(target.rows or (0, m))), columns] = u
        if not bool(A.isfinite().all() and B.isfinite().all()):
            raise InputError(
                f"got factors of {name} with entries that are not finite in float32, expected finite ones; "
                "solve again with a lower learning rate or a larger lam."
            )
        if r:
            pairs[name] = A, B
    return pairs


def _lora_config(
    pairs: dict[str, LoraPair], module: nn.Module, transposed: bool, base_model: str, revision: str | None
) -> Any:
    """Return the LoraConfig under which PEFT adapts exactly these modules, each at its own rank."""
    from peft import LoraConfig

    ranks = {name: len(A) for name, (A, _) in pairs.items()}
    r = max(ranks.values())
    # PEFT matches these regular expressions with the ends of names; anchored, each matches one module.
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != r}
    config = LoraConfig(
        r=r,
        lora_alpha=r,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=transposed,
        # A task type would make PEFT expect a classifier in the file; the class serves AutoPeftModel instead.
        task_type=None,
        auto_mapping={"base_model_class": type(module).__name__, "parent_library": type(module).__module__},
        base_model_name_or_path=base_model,
        revision=revision,
        inference_mode=True,
    )
    # Given to the constructor these would become sets, which every process writes in another order.
    config.target_modules = list(pairs)
    ends = tuple(f".{name}" for name in pairs)
    config.exclude_modules = [
        name for name, _ in module.named_modules() if name.endswith(ends) and name not in pairs
    ] or None
    return config


def _replace(folder: Path, config: Any, tensors: dict[str, Tensor]) -> None:
    """Write both files beside the folder and move them in."""
    from safetensors.torch import save_file

    folder = folder.resolve()  # a link may lead to another disk, where nothing can be moved to
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent
    ) as partial:
        written = Path(partial)
        save_file(tensors, written / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(written)
        move_adapter(written, folder)
