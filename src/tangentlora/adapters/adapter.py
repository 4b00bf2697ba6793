"""What a LoRA adapter says, as tensors and without its network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError


@final
@dataclass(frozen=True, eq=False)
class LoraLayer:
    """One adapted matrix as PEFT trains it: δ = s·B·A with A (r,n), B (m,r) and the scaling s > 0."""

    A: Float[Tensor, "r n"]
    B: Float[Tensor, "m r"]
    scaling: float

    @property
    def rank(self) -> int:
        """The number r of columns of B, which is not the rank of δ where they are dependent."""
        return len(self.A)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return len(self.B), self.A.shape[1]

    def factors(self) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"]]:
        """Return u = √s·B (m,r) and v = √s·Aᵀ (n,r), so that δ = u vᵀ and ‖u‖²+‖v‖² = s(‖A‖²+‖B‖²).

        In float64, since float32 would round the root into every output.
        """
        root = math.sqrt(self.scaling)
        return root * self.B.double(), root * self.A.T.double()


@final
@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter: its layers by module name, and the weights of the network that it replaces.

    `layers` are named as the adapter names them: see :func:`tangentlora.adapters.fit.fitted` for a network's
    own names. `saved` holds whole parameters trained beside the factors (`modules_to_save`, biases), by the
    full name of the parameter: they belong to the base that δ is measured against. `base_model`, `revision`,
    `task_type` and `target_modules` are what the adapter's configuration says, None where it says nothing.
    `folder` is where its files lie, None for the adapter of a live model. `modules_to_save` and `bias` are
    what its configuration promises to be in `saved`. All tensors are on the CPU, the factors in float32 or
    float64.
    """

    name: str
    layers: dict[str, LoraLayer]
    saved: dict[str, Tensor]
    rslora: bool
    base_model: str | None = None
    revision: str | None = None
    task_type: str | None = None
    target_modules: tuple[str, ...] | str | None = None
    folder: Path | None = None
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"

    @property
    def factors(self) -> Factors:
        """u_t = √s_t·B_t (m,r) and v_t = √s_t·A_tᵀ (n,r) per layer: δ_t = u_t v_tᵀ, see `lam_of`."""
        return {name: layer.factors() for name, layer in self.layers.items()}

    @property
    def ranks(self) -> dict[str, int]:
        return {name: layer.rank for name, layer in self.layers.items()}

    @property
    def alphas(self) -> dict[str, float]:
        """The alpha of each layer, to rounding: s·r, or s·√r with rsLoRA."""
        return {
            name: layer.scaling * (math.sqrt(layer.rank) if self.rslora else layer.rank)
            for name, layer in self.layers.items()
        }

    def lam_of(self, weight_decay: float) -> dict[str, float]:
        """Return λ_t = w/s_t per layer, under which λ_t/2 (‖u_t‖²+‖v_t‖²) = w/2 (‖A_t‖²+‖B_t‖²).

        That is what an L2 *penalty* of weight w on A and B means for the factors; the decoupled decay of
        AdamW is not such a penalty. The λ_t differ where the scalings do. Raises `InputError` when w < 0.
        """
        if not 0 <= weight_decay < math.inf:
            raise InputError(
                f"got a weight decay of {weight_decay}, expected a finite number that is not negative; give "
                "the one that the adapter was trained with."
            )
        return {name: weight_decay / layer.scaling for name, layer in self.layers.items()}


def require_layers(name: str, layers: Mapping[str, LoraLayer]) -> None:
    """Require at least one layer, and in each a positive scaling and finite entries, s·B·A included.

    Raises `InputError` with the adapter's name otherwise.
    """
    if not layers:
        raise InputError(
            f"got the adapter {name} without a single pair lora_A and lora_B, expected LoRA layers; save it "
            "again with PEFT."
        )
    for module, layer in layers.items():
        if not 0 < layer.scaling < math.inf:
            raise InputError(
                f"got the adapter {name} with the scaling {layer.scaling} at {module}, expected a positive "
                "one; correct lora_alpha."
            )
        if not all(bool(torch.isfinite(factor).all()) for factor in layer.factors()):
            raise InputError(
                f"got the adapter {name} with entries at {module} that are not finite, expected finite ones; "
                "take an earlier checkpoint of the run that diverged."
            )


def as_layer(name: str, module: str, A: Tensor, B: Tensor, scaling: float) -> LoraLayer:
    """Return a layer on the CPU in at least float32; refuse all but real A (r,n) and B (m,r)."""
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1] or not A.shape[0]:
        raise InputError(
            f"got the adapter {name} with lora_A of shape {tuple(A.shape)} and lora_B of shape "
            f"{tuple(B.shape)} at {module}, expected (r, n) and (m, r), the factors of a matrix; leave "
            "layers that are no Linear or Conv1D out of target_modules."
        )
    if A.is_complex() or B.is_complex():
        raise InputError(
            f"got the adapter {name} with complex factors at {module}, expected real ones; save it again "
            "from the model that was trained."
        )
    A, B = (
        factor.detach().to("cpu", torch.float64 if factor.dtype == torch.float64 else torch.float32)
        for factor in (A, B)
    )
    return LoraLayer(A.clone(), B.clone(), float(scaling))
