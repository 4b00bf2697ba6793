"""Where a job's time goes, part by part, by timers put around functions for as long as it runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import Any

REST = "the rest"
Site = tuple[str, Any, str]
"""A part's name, and the module or class and the attribute that holds a function of it."""


@contextmanager
def timed_parts(sites: Iterable[Site], whole: frozenset[str] = frozenset()) -> Iterator[dict[str, float]]:
    """Yield seconds by part, complete at the end; `REST` is what no part took.

    A function's time is its own: what it spends in a function of another part counts there, but for the parts
    in `whole`, which keep all of theirs. Every site must exist.
    """
    spent: dict[str, float] = defaultdict(float)
    stack = [REST]
    since = time.perf_counter()

    def switch() -> None:
        nonlocal since
        now = time.perf_counter()
        spent[stack[-1]] += now - since
        since = now

    def around(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if stack[-1] in whole:
                return function(*args, **kwargs)
            switch()
            stack.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                switch()
                stack.pop()

        return timed

    before = []
    for part, owner, name in sites:
        spent[part] += 0.0
        found = vars(owner)[name]
        before.append((owner, name, found))
        if isinstance(found, cached_property):
            replacement = cached_property(around(part, found.func))
            replacement.__set_name__(owner, name)
            setattr(owner, name, replacement)
        else:
            setattr(owner, name, around(part, found))
    try:
        yield spent
    finally:
        switch()
        for owner, name, found in before:
            setattr(owner, name, found)
