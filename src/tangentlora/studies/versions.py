"""The versions of Python and of the libraries that results depend on, read without importing any of them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("tangentlora", "torch", "transformers", "peft", "datasets", "safetensors", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Return the version of each, `absent` for a library that is not installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
