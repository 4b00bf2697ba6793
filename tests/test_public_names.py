"""The names that `import tangentlora` offers: all there, documented, and loaded only when first used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tangentlora
from tangentlora import InputError, __version__

ALIASES = {"Factors"}
"""Pairs of tensors by name: a type alias has no docstring."""

NAMES = [name for name in tangentlora.__all__ if name != "__version__"]


def test_they_are_between_25_and_35_and_none_twice() -> None:
    assert 25 <= len(NAMES) <= 35
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_there_and_documented(name: str) -> None:
    value = getattr(tangentlora, name)
    assert name in dir(tangentlora)
    if name not in ALIASES:
        assert value.__name__ == name
        first = (inspect.getdoc(value) or "").split("\n\n")[0]
        assert first.rstrip().endswith(".")


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(tangentlora.__file__).read_text())
    (guarded,) = (
        node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    )
    seen = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(seen) == set(NAMES)
    assert {name: f"tangentlora.{home}" for name, home in tangentlora._HOME_OF.items()} == seen


def test_a_name_that_is_none_is_told() -> None:
    with pytest.raises(AttributeError, match="module 'tangentlora' has no attribute 'nothing'"):
        tangentlora.nothing  # noqa: B018


def test_they_are_usable_as_imported() -> None:
    assert issubclass(InputError, ValueError)
    assert __version__.count(".") == 2


def test_the_import_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "peft", "datasets", "matplotlib", "numpy", "scipy", "safetensors")
    code = f"import sys, tangentlora; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
