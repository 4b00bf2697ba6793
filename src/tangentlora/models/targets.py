"""From "query and value of the last layer" to weight matrices, by module type and full name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Target:
    """One adapted weight matrix W_t (m,n): the whole weight of a module, or a range of its output rows.

    `name` is the key in `Blocks`. It equals `module`, the module's full name, unless the weight is fused: then it
    is `module:role` (for GPT-2, `transformer.h.11.attn.c_attn:query`) and `rows` is the half-open range of outputs.
    `transposed` says that the module stores its weight as (in, out), as GPT-2's Conv1D does.
    """

    name: str
    module: str
    shape: tuple[int, int]
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def weight(self, module: nn.Module) -> Tensor:
        """Return this target's part of the weight as an (m,n) view; writing into it writes into the network."""
        weight = module.get_submodule(self.module).get_parameter("weight")
        weight = weight.T if self.transposed else weight
        return weight if self.rows is None else weight[self.rows[0] : self.rows[1]]
