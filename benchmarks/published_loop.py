"""The training loop of the paper's authors, from a description of their published code.

Written from the facts that docs/solvers.md lists, without a line of the original: dense Jacobians; in every
step one pass of the network for its outputs and another within the trained module, whose result is not used;
the dense update B·A of every layer times the dense Jacobian; the loss summed over the batch; plain SGD; a
weight decay that changes nothing and a penalty that is only logged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.blocks import Factors


@dataclass(frozen=True)
class PublishedLoop:
    """Gradient descent on Σ_i ℓ(f(x_i) + ⟨J_i, BA⟩, y_i) in float32, B (m,r) and A (r,n) per layer.

    `forward` passes the network over all examples, (N,K); the examples are one batch, as N = 32 is there.
    """

    forward: Callable[[], Float[Tensor, "N K"]]
    dense: dict[str, Float[Tensor, "N K m n"]]
    y: Int[Tensor, " N"]
    lam: float

    def train(self, start: Factors, rate: float, steps: int) -> tuple[Factors, list[float]]:
        """Return the factors after so many steps, and what each epoch logs: mean loss plus λ times penalty.

        As published, the loss is that before the step and the penalty that after it.
        """
        down = {name: u.float().clone().requires_grad_() for name, (u, _) in start.items()}
        up = {name: v.float().T.clone().requires_grad_() for name, (_, v) in start.items()}
        moving = [*down.values(), *up.values()]
        optimizer = torch.optim.SGD(moving, lr=rate)
        logged = []
        for _ in range(steps):
            with torch.no_grad():
                outputs = self.forward()
            change = self._change(down, up)
            loss = torch.nn.functional.cross_entropy(outputs + change, self.y, reduction="sum")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                penalty = sum(0.5 * w.square().sum() for w in moving)
            logged.append(loss.item() / len(self.y) + self.lam * float(penalty))
        return {name: (down[name].detach(), up[name].detach().T) for name in start}, logged

    def _change(self, down: dict[str, Tensor], up: dict[str, Tensor]) -> Float[Tensor, "N K"]:
        """Return ⟨J_ik, BA⟩, by the module that passes the network once more before."""
        with torch.no_grad():
            self.forward()
        parts = [((down[name] @ up[name]) * blocks).sum((-2, -1)) for name, blocks in self.dense.items()]
        return torch.stack(parts).sum(0)
