"""Check a certificate from the files alone, with numpy and code that shares nothing with the solvers.

The Jacobian is read from the store, the answer and the labels from solution.safetensors, λ, loss and
tolerance from run.json, and every field of certificate.json is computed anew. A file that was altered, a
λ that is not the one solved for, or a certificate that claims too much is rejected with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tangentlora.errors import InputError
from tangentlora.theory.adapter_proof import adapter_differences
from tangentlora.theory.agreement import differences
from tangentlora.theory.distance import Distance
from tangentlora.theory.evidence import SEALED, Answer, read_answer, read_json, read_run
from tangentlora.theory.recompute import labels_fit, recomputation
from tangentlora.theory.seals import broken_seals
from tangentlora.theory.shards import Store, read_store, sha256_of

_RECORDED = ("objective", "factored_objective", "lower_bound", "gap", "relative_gap", "certified")
"""The numbers that run.json repeats."""


@dataclass(frozen=True)
class Verification:
    """`valid`: every recorded number is right; `certified`: they prove the claim at the tolerance.

    `recomputed` holds the fields of the certificate as computed here, where it is valid those on record,
    which agree with them; none where the files do not fit together. `sealed`: the run folder's other files
    have the checksums of its seal, which earlier versions did not write.
    """

    valid: bool
    certified: bool
    reasons: tuple[str, ...]
    recomputed: dict[str, Any]
    sealed: bool = False

    def sentence(self) -> str:
        """Return the verdict in one sentence."""
        if not self.valid:
            return "Rejected: " + "; ".join(self.reasons) + "."
        distance = Distance.of(self.recomputed)
        goal = f"{self.recomputed['tolerance']:.0e}"
        files = (
            "All files of the run are as they were sealed, and its adapter is the answer"
            if self.sealed
            else "Its certificate and answer have their checksums; its other files were not sealed"
        )
        trusted = f"{files}. Taken on trust: the Jacobian in the store, and the labels."
        if self.certified:
            said = f"Valid: the answer is within {distance.said()} of the global optimum (tolerance {goal})."
            return f"{said} {trusted}" if distance.telling else f"{said} {distance.warning()} {trusted}"
        said = f"Valid, but not a global optimum: the gap {distance.said()} is above the tolerance {goal}."
        return f"{said} {trusted}"


def verify(folder: Path | str, store: Path | str | None = None) -> Verification:
    """Verify the certificate in a run folder; `store` names the folder of the tangent if it has moved.

    Raises InputError where a file is missing or unreadable, so that nothing can be said.
    """
    folder = Path(folder)
    claimed = read_json(folder / "certificate.json", "name the --output-dir of an earlier fit or demo")
    run = read_run(folder)
    answer = read_answer(folder / "solution.safetensors")
    tangent = read_store(run.store if store is None else Path(store))
    changed = [name for name in SEALED if sha256_of(folder / name) != run.seals.get(name)]
    broken = broken_seals(run.root, run.record)
    reasons = [f"{name} is not the file that was written" for name in changed]
    reasons += [reason for reason in broken or [] if reason not in reasons]
    reasons += [f"run.json lists the answer in {name} more than once" for name in run.twice]
    if run.key != tangent.key:
        reasons.append(f"the run was made on the tangent {run.key}, but the store holds {tangent.key}")
    if misfit := _misfit(run.loss, answer, tangent):
        return Verification(False, False, (*reasons, misfit), {})
    with np.errstate(all="ignore"):
        reasons += adapter_differences(
            folder / "adapter", answer, tangent.places, required=broken is not None
        )
    try:
        with np.errstate(all="ignore"):
            found = recomputation(tangent, answer, run.loss, run.lam, run.tolerance, earlier=broken is None)
    except np.linalg.LinAlgError:
        return Verification(False, False, (*reasons, "the numbers of the answer overflow"), {})
    reasons += differences(claimed, found)
    reasons += _repeated(claimed, run.numbers)
    # what was recorded is right, to rounding, and says whether it proves the claim
    fields = found.fields | ({} if reasons else claimed)
    certified = not reasons and fields["certified"]
    return Verification(not reasons, certified, tuple(reasons), fields, sealed=broken is not None)


def _misfit(loss: str, answer: Answer, tangent: Store) -> str | None:
    """Return why the answer cannot be one for this tangent; raises InputError where the layers differ."""
    if set(tangent.shapes) != set(answer.factors):
        raise InputError(
            f"got factors for {sorted(answer.factors)} and a store for {sorted(tangent.shapes)}, "
            "expected the same layers: name the store of this run with --store"
        )
    if not labels_fit(loss, answer.labels, *tangent.f0.shape):
        return f"the labels are none for {loss} with outputs {tangent.f0.shape}"
    for name, (u, v) in answer.factors.items():
        m, n = tangent.shapes[name]
        if u.ndim != 2 or u.shape[0] != m or v.shape != (n, u.shape[1]):
            return f"the factors of {name} are {u.shape} and {v.shape}, which do not fit the store"
        if not (np.isfinite(u).all() and np.isfinite(v).all()):
            return f"the factors of {name} are not finite"
    return None


def _repeated(claimed: dict[str, Any], numbers: dict[str, Any]) -> list[str]:
    """Return what run.json says otherwise than the certificate, whose numbers it repeats."""
    return [
        f"{name} is {numbers[name]} in run.json and {claimed.get(name)} in the certificate"
        if name in numbers
        else f"run.json lacks {name}"
        for name in _RECORDED
        if name not in numbers
        or type(numbers[name]) is not type(claimed.get(name))
        or numbers[name] != claimed[name]
    ]
