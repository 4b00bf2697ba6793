"""LoRA in the NTK regime: train it, solve it, and prove how far any run is from the global optimum.

The names below are in the order in which the data travels. They are imported when first used, so that
`import tangentlora` and the command line's `--help` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangentlora.adapters import loaded_outputs, write_adapter
    from tangentlora.blocks import Blocks, Factors
    from tangentlora.data import Examples, Splits, Task, load_splits
    from tangentlora.errors import InputError
    from tangentlora.models import (
        ClassificationHead,
        MaskPrompt,
        Network,
        Prototypes,
        Target,
        find_targets,
        fit_linear_probe,
        load_network,
        network_from_module,
    )
    from tangentlora.models.update import updated
    from tangentlora.problem.losses import CrossEntropy, Logistic, Squared
    from tangentlora.problem.objective import Problem
    from tangentlora.report import write_report
    from tangentlora.solvers.certified import Certified
    from tangentlora.solvers.descent import Descent
    from tangentlora.solvers.proximal import Proximal
    from tangentlora.solvers.solution import Solution, Status
    from tangentlora.tangent.jacobian import Jacobian
    from tangentlora.tangent.linearize import linearize
    from tangentlora.tangent.tangent import Tangent
    from tangentlora.theory.certificate import Certificate, certify
    from tangentlora.theory.verify import verify

__version__ = version("tangentlora")

_HOMES = {
    "models": "load_network network_from_module Network MaskPrompt Prototypes ClassificationHead "
    "fit_linear_probe find_targets Target",
    "data": "load_splits Splits Examples Task",
    "tangent.linearize": "linearize",
    "tangent.tangent": "Tangent",
    "tangent.jacobian": "Jacobian",
    "blocks": "Blocks Factors",
    "problem.losses": "CrossEntropy Logistic Squared",
    "problem.objective": "Problem",
    "solvers.descent": "Descent",
    "solvers.proximal": "Proximal",
    "solvers.certified": "Certified",
    "solvers.solution": "Solution Status",
    "theory.certificate": "certify Certificate",
    "theory.verify": "verify",
    "models.update": "updated",
    "adapters": "write_adapter loaded_outputs",
    "report": "write_report",
    "errors": "InputError",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [*_HOME_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
