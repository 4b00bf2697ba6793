"""Threads for many small steps: waking a second thread can take longer than the product it would share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tangentlora.tangent.operator import Operator

_SMALL = 2**20
"""Entries of a layer's rows up to which a run keeps to one thread. At 2**18, those of 32 prompts on a network
of 768 dimensions, waiting for a second thread took five to twenty times as long as the run where other
programs kept the processors busy."""


@contextmanager
def fitting_threads(jacobian: Operator) -> Iterator[None]:
    """Keep torch to one thread while a solver works on a small Jacobian; its setting is restored after."""
    rows, shapes = jacobian.extents, jacobian.shapes
    largest = max(rows[t].rows * max(n, m * jacobian.n_outputs) for t, (m, n) in shapes.items())
    before = torch.get_num_threads()
    if largest <= _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
