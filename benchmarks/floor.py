"""The least time that a job's matrix products could take here: their arithmetic and the bytes they touch."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_BUFFER = 2**28
_VECTOR = {torch.ops.aten.mv, torch.ops.aten.addmv}


class Products(TorchDispatchMode):
    """Counts the floating-point operations of all matrix products by precision, and the bytes they touch."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry or packet in _VECTOR:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            if packet in flop_registry:
                flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            else:
                flops = 2 * max(tensor.numel() for tensor in tensors)
            self.flops[str(tensors[-1].dtype).removeprefix("torch.")] += flops
            self.bytes += sum(tensor.nbytes for tensor in tensors)
        return out


def gemm_rate(dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a large matrix product, the best of ten."""
    a, b = torch.randn(1280, 768, dtype=dtype), torch.randn(768, 3072, dtype=dtype)
    return 2 * a.numel() * b.shape[1] / _best(lambda: a @ b, 10)


def bandwidth(nbytes: int) -> float:
    """Return the bytes per second at which this many, at least 64 kB and at most 256 MB, are read again."""
    buffer = torch.ones(min(max(nbytes, 2**16), _BUFFER) // 4)
    times = max(1, 2**22 // buffer.numel())

    def read() -> None:
        for _ in range(times):
            buffer.sum()

    return buffer.nbytes * times / _best(read, 10)


def hash_rate() -> float:
    """Return the bytes per second of SHA-256."""
    data = bytes(2**26)
    return len(data) / _best(lambda: hashlib.sha256(data).digest(), 3)


def _best(work: Callable[[], object], times: int) -> float:
    best = math.inf
    for _ in range(times):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
