"""Who may know whom: the imports of every file, read by `ast` and held to the rules of the layout."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MOST_LINES = 300

HEAVY = {"transformers", "peft", "datasets", "matplotlib", "cvxpy", "accelerate"}
"""Never imported at the top of a file: these take up to seconds, which `--help` must not wait for."""

DOORS = {"transformers": "models", "datasets": "data", "peft": "adapters"}
"""Each of these libraries is imported in one package only."""

PURE = (
    "problem",
    "tangent.jacobian",
    "tangent.layer_rows",
    "tangent.band_products",
    "tangent.centred",
    "tangent.gram",
    "tangent.operator",
    "tangent.rough_point",
    "tangent.rows",
    "tangent.span",
)
"""The mathematics: it sees tensors, never a network, a tokenizer or a file."""
PURE_LIBRARIES = {"torch", "numpy", "scipy", "jaxtyping"}
FILES = {"pathlib", "os", "io", "shutil", "tempfile", "glob"}

STRANGERS = {
    "solvers": ("theory", "models", "data", "adapters"),
    "theory": ("solvers", "data", "adapters"),
}
"""Solvers and theory know a problem and not each other; theory may read an answer, `solvers.solution`."""

OUTERMOST = ("studies", "report", "cli", "options")
"""These know everything, and nothing else knows them, save the package's own list of public names."""


@dataclass(frozen=True)
class Import:
    """One imported name, in full, and whether it is imported when the file is."""

    importer: str
    name: str
    line: int
    eager: bool

    @property
    def library(self) -> str:
        return self.name.split(".")[0]

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: {self.name}"


def imports_of(module: str, source: str) -> list[Import]:
    """Return every import of a module, those inside functions and under TYPE_CHECKING too."""
    return list(_walk(ast.parse(source), module, True))


def _walk(node: ast.AST, module: str, eager: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(module, alias.name, child.lineno, eager) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parts = [*(module.split(".")[: -child.level] if child.level else []), child.module or ""]
            base = ".".join(part for part in parts if part)
            yield from (Import(module, f"{base}.{alias.name}", child.lineno, eager) for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from _walk(child, module, False)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, module, eager and not inside)


def within(name: str, *parts: str) -> bool:
    """Say whether a full name lies in one of these parts of the project."""
    return any(f"{name}.".startswith(f"tangentlora.{part}.") for part in parts)


def objections(module: str, source: str) -> list[str]:
    """Return what the rules say against one file; the module is its full name, `__init__` included."""
    found = [] if source.count("\n") <= MOST_LINES else [f"{module} has over {MOST_LINES} lines"]
    if module.endswith(".utils"):
        found.append(f"{module}: a file is named after what it holds")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases):
            decorators = set(map(ast.unparse, node.decorator_list))
            if "runtime_checkable" not in decorators:
                found.append(f"{module}.{node.name} is not runtime_checkable, as shape_checks needs")
    for imported in imports_of(module, source):
        found += [f"{imported} ({reason})" for reason in _reasons(imported)]
    return found


def _reasons(imported: Import) -> Iterator[str]:
    importer, name, library = imported.importer, imported.name, imported.library
    if library in HEAVY and imported.eager:
        yield "heavy: import it inside the function that needs it"
    if library in DOORS and not within(importer, DOORS[library]):
        yield f"only {DOORS[library]} imports {library}"
    if within(name, *OUTERMOST) and not within(importer, *OUTERMOST, "__main__", "__init__"):
        yield "nothing imports studies, report and cli"
    if within(importer, *PURE):
        if library == "tangentlora" and not within(name, *PURE, "blocks", "errors"):
            yield "the mathematics sees tensors only"
        if library in FILES or library not in PURE_LIBRARIES | {"tangentlora"} | sys.stdlib_module_names:
            yield "the mathematics needs torch, numpy and scipy only, and no files"
    for package, strangers in STRANGERS.items():
        if within(importer, package) and within(name, *strangers) and not within(name, "solvers.solution"):
            yield f"{package} knows a problem, not {' or '.join(strangers)}"


def loaded_with(module: str, imports: Mapping[str, list[Import]]) -> set[str]:
    """Return every library that importing a module of the project imports, through other modules too."""
    libraries: set[str] = set()
    seen: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            eager = [i for i in (*imports.get(name, ()), *imports.get(f"{name}.__init__", ())) if i.eager]
            libraries.update(i.library for i in eager)
            waiting.update(i.name for i in eager)
            waiting.add(name.rpartition(".")[0])  # the package around a module is imported with it
    return libraries - {"tangentlora"}


def project() -> dict[str, str]:
    """Return the text of every module, by full name."""
    return {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): path.read_text()
        for path in sorted((SOURCE / "tangentlora").rglob("*.py"))
    }


@pytest.mark.parametrize("module", project())
def test_every_file_keeps_to_the_rules(module: str) -> None:
    assert objections(module, project()[module]) == []


def test_start_up_loads_nothing_heavy() -> None:
    imports = {module: imports_of(module, source) for module, source in project().items()}
    for module in ("tangentlora.__init__", "tangentlora.cli", "tangentlora.cli.__init__"):
        if module in imports:
            assert not loaded_with(module.removesuffix(".__init__"), imports) & (HEAVY | {"torch", "scipy"})


@pytest.mark.parametrize(
    ("module", "source", "objection"),
    [
        ("models.load", "import transformers", "line 1: transformers (heavy"),
        ("report.plot", "\nfrom matplotlib import pyplot", "line 2: matplotlib.pyplot (heavy"),
        ("data.hub", "try:\n    import datasets\nexcept ImportError:\n    pass", "heavy"),
        ("data.hub", "class A:\n    import datasets", "heavy"),
        ("tangent.store", "def f():\n    import transformers", "only models imports transformers"),
        ("models.load", "def f():\n    from peft import LoraConfig", "only adapters imports peft"),
        ("problem.losses", "if TYPE_CHECKING:\n    import datasets", "only data imports datasets"),
        (
            "solvers.newton",
            "from tangentlora.theory.rank import count",
            "solvers knows a problem, not",
        ),
        ("solvers.newton", "from tangentlora import theory", "solvers knows a problem, not"),
        ("solvers.newton", "from ..theory import rank", "solvers knows a problem, not"),
        (
            "theory.rank",
            "def f():\n    from tangentlora.solvers import newton",
            "theory knows a problem, not",
        ),
        ("theory.regime", "from tangentlora.data.examples import Examples", "theory knows a problem, not"),
        ("problem.objective", "from tangentlora.tangent.tangent import Tangent", "sees tensors only"),
        ("problem.objective", "from tangentlora.tangent import linearize", "sees tensors only"),
        ("problem.objective", "import pathlib", "and no files"),
        ("tangent.jacobian", "import safetensors", "needs torch, numpy and scipy only"),
        ("tangent.jacobian", "from tangentlora.models.network import Network", "sees tensors only"),
        ("theory.bounds", "import tangentlora.report", "nothing imports studies, report and cli"),
        ("tangent.__init__", "from tangentlora.cli import main", "nothing imports studies, report and cli"),
        ("tangent.utils", "", "a file is named after what it holds"),
        ("tangent.long", "\n" * 301, "has over 300 lines"),
        ("models.network", "class Reader(Protocol): ...", "Reader is not runtime_checkable"),
    ],
)
def test_the_rules_say_no(module: str, source: str, objection: str) -> None:
    (found,) = [text for text in objections(f"tangentlora.{module}", source) if objection in text]
    assert found.startswith(f"tangentlora.{module}")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("report.plot", "if TYPE_CHECKING:\n    from matplotlib.axes import Axes"),
        ("models.load", "def f():\n    import transformers"),
        ("theory.certificate", "from tangentlora.solvers.solution import Solution"),
        ("problem.objective", "import math\nimport torch\nfrom tangentlora.tangent.span import restrict"),
        ("cli", "def f():\n    from tangentlora.report.page import write_report"),
        ("tangent.store", "import os\nfrom tqdm import tqdm\nfrom safetensors.torch import save_file"),
        ("__init__", "if TYPE_CHECKING:\n    from tangentlora.report import write_report"),
        ("tangent.long", "\n" * 300),
        ("models.network", "@runtime_checkable\nclass Reader(Protocol): ..."),
    ],
)
def test_the_rules_say_yes(module: str, source: str) -> None:
    assert objections(f"tangentlora.{module}", source) == []


def test_what_start_up_loads_is_followed_through_modules_and_packages() -> None:
    sources = {
        "tangentlora.__init__": "import json",
        "tangentlora.cli": "from tangentlora.theory.rank import count\ndef f():\n    import peft",
        "tangentlora.theory.__init__": "from tangentlora import problem",
        "tangentlora.theory.rank": "import numpy",
        "tangentlora.problem.__init__": "import torch",
    }
    imports = {module: imports_of(module, source) for module, source in sources.items()}
    assert loaded_with("tangentlora.cli", imports) == {"json", "numpy", "torch"}
    assert loaded_with("tangentlora", imports) == {"json"}
