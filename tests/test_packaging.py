"""What is installed: pinned dependencies, the lowest versions, a whole source distribution."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = canonicalize_name(PROJECT["name"])


def pins(name: str) -> dict[str, str]:
    """Return the version of each package that a constraints file pins; every line must pin one."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    parts = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(parts), [line for line, part in zip(lines, parts, strict=True) if not part]
    return {canonicalize_name(part[1]): part[2] for part in parts if part}


def asked_for(extra: str = "") -> list[Requirement]:
    """Return what pyproject.toml asks for, with its own extras followed."""
    listed = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    found = []
    for requirement in map(Requirement, listed):
        if canonicalize_name(requirement.name) == OWN:
            found += [inner for one in sorted(requirement.extras) for inner in asked_for(one)]
        else:
            found.append(requirement)
    return found


def needed(roots: list[Requirement]) -> set[str]:
    """Return the packages that these bring here, by the metadata of those that are installed."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(root.name), frozenset(root.extras)) for root in roots]
    while waiting:
        name, extras = one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        try:
            described = requires(name) or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, described):
            wanted = requirement.marker
            if wanted is None or any(wanted.evaluate({"extra": extra}) for extra in (*extras, "")):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in seen}


def test_every_development_dependency_is_pinned() -> None:
    brought = needed([*asked_for(), *asked_for("dev")])
    assert {"numpy", "pyarrow", "pytest"} <= brought
    # a CUDA build of torch pins its own libraries
    assert {n for n in brought if not n.startswith(("nvidia-", "cuda-", "triton"))} - pins(
        "constraints.txt"
    ).keys() == set()


def test_pins_are_versions_that_the_project_allows() -> None:
    pinned = pins("constraints.txt")
    for requirement in [*asked_for(), *asked_for("dev")]:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_lowest_versions_are_those_that_are_tested() -> None:
    oldest = pins("constraints-oldest.txt")
    for requirement in [*asked_for(), *asked_for("test")]:
        (bound,) = requirement.specifier
        assert bound.operator in (">=", "=="), requirement
        assert Version(oldest[canonicalize_name(requirement.name)]) == Version(bound.version), requirement


def test_the_source_distribution_holds_what_the_tests_read(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools", minversion="77", reason="builds the source distribution")
    assert setuptools
    passed_over = shutil.ignore_patterns(
        ".git", ".venv*", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "runs"
    )
    shutil.copytree(ROOT, tmp_path / "tree", ignore=passed_over)
    build = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path / "tree", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    for folder in ("src", "tests", "docs", "benchmarks", "results", "campaign"):
        there = {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and not {"__pycache__", "tangentlora.egg-info"} & {*path.parts}
        }
        assert there
        assert there - held == set()
    alone = {
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "constraints-oldest.txt",
        "README.md",
        ".ci/run",
    }
    assert {path for path in alone if (ROOT / path).exists()} - held == set()
    assert not any("__pycache__" in name for name in held)
