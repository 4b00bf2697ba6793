"""Training a whole network, for the networks that the project makes itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tangentlora.progress import bar


def train(
    module: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    desc: str,
    progress: bool,
) -> None:
    """Minimise `loss(generator)`, of one minibatch drawn by the generator, over all weights of `module`.

    AdamW with weight decay 0.01 and gradients clipped at norm 1; the rate rises over the first tenth of the
    steps and then falls to 0 as a cosine. Leaves the module in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    module.train().requires_grad_(True)
    with bar(steps, desc, "step", progress) as shown:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(generator).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            shown.update()
    module.eval()
