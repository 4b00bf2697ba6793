"""Progress bars on stderr, for every work that takes long."""

from __future__ import annotations

import sys
from typing import Any

_TERMINAL_SECONDS = 0.1
_LOG_SECONDS = 15.0  # in a log every refresh is text that stays


def bar(total: int, desc: str, unit: str, enabled: bool) -> Any:
    """Return a tqdm bar of `total` steps on stderr, redrawn less often where that is no terminal.

    With `enabled` false it draws nothing and counts nothing.
    """
    from tqdm import tqdm

    seconds = _TERMINAL_SECONDS if sys.stderr.isatty() else _LOG_SECONDS
    return tqdm(
        total=total, desc=desc, unit=unit, disable=not enabled, mininterval=seconds, maxinterval=seconds
    )
