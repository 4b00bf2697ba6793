"""LoRA in the NTK regime: train it, solve it, and prove how far any run is from the global optimum.

The names below are in the order in which the data travels. They are imported when first used, so that
`import tangentlora` and the command line's `--help` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangentlora.adapters import write_adapter as write_adapter
    from tangentlora.blocks import Factors as Factors
    from tangentlora.data import (
        Examples as Examples,
        Splits as Splits,
        Task as Task,
        load_splits as load_splits,
    )
    from tangentlora.errors import InputError as InputError
    from tangentlora.models import (
        CausalPrompt as CausalPrompt,
        ClassificationHead as ClassificationHead,
        Completion as Completion,
        MaskPrompt as MaskPrompt,
        Network as Network,
        Prototypes as Prototypes,
        find_targets as find_targets,
        fit_linear_probe as fit_linear_probe,
        load_network as load_network,
        network_from_module as network_from_module,
    )
    from tangentlora.models.update import updated as updated
    from tangentlora.problem.losses import (
        CrossEntropy as CrossEntropy,
        Logistic as Logistic,
        Squared as Squared,
    )
    from tangentlora.problem.objective import Problem as Problem
    from tangentlora.report import write_report as write_report
    from tangentlora.solvers.certified import Certified as Certified
    from tangentlora.solvers.descent import Descent as Descent
    from tangentlora.solvers.proximal import Proximal as Proximal
    from tangentlora.solvers.solution import (
        Solution as Solution,
        Status as Status,
    )
    from tangentlora.studies.audit import audit as audit
    from tangentlora.studies.compress_adapter import compress as compress
    from tangentlora.tangent.jacobian import Jacobian as Jacobian
    from tangentlora.tangent.linearize import linearize as linearize
    from tangentlora.theory.certificate import (
        Certificate as Certificate,
        certify as certify,
    )
    from tangentlora.theory.verify import verify as verify

__version__ = version("tangentlora")

_HOMES = {
    "models": "load_network network_from_module Network MaskPrompt CausalPrompt Completion Prototypes "
    "ClassificationHead fit_linear_probe find_targets",
    "data": "load_splits Splits Examples Task",
    "tangent.linearize": "linearize",
    "tangent.jacobian": "Jacobian",
    "blocks": "Factors",
    "problem.losses": "CrossEntropy Logistic Squared",
    "problem.objective": "Problem",
    "solvers.descent": "Descent",
    "solvers.proximal": "Proximal",
    "solvers.certified": "Certified",
    "solvers.solution": "Solution Status",
    "theory.certificate": "certify Certificate",
    "theory.verify": "verify",
    "models.update": "updated",
    "adapters": "write_adapter",
    "studies.audit": "audit",
    "studies.compress_adapter": "compress",
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
