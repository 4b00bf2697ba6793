"""A run folder → the problem it solved, prepared again, and one of its answers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from tangentlora.belongs import used_only
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.report.folder import RunFolder
from tangentlora.report.record import Answer, Run
from tangentlora.report.wording import listing
from tangentlora.studies.earlier import completed
from tangentlora.studies.prepare import Prepared, prepare
from tangentlora.studies.settings import ReadoutName, Settings
from tangentlora.tangent.tangent import key_of
from tangentlora.theory.evidence import read_answer

READOUTS: dict[str, ReadoutName] = {
    "mask-prompt": "prompt",
    "causal-prompt": "prompt",
    "prototypes": "prototypes",
    "classification": "head",
}
"""What a run folder calls a readout, and the setting that gives it."""


@dataclass(frozen=True, eq=False)
class Reopened:
    """A run's problem, made anew and known to be the same, with one of its answers."""

    run: Run
    answer: Answer
    factors: Factors
    prepared: Prepared


def reopen(
    folder: Path,
    answer: str | None = None,
    *,
    device: str | None = None,
    dev: bool = False,
    progress: bool = False,
) -> Reopened:
    """Read a run folder and prepare its problem again; `answer` is a name in it, by default the main one's.

    Raises InputError for what is no run folder or is damaged, a name that it lacks, and where data, network
    or libraries have changed so that the tangent is not that of the run.
    """
    run = RunFolder(folder).read_run()
    chosen = run.main if answer is None else _named(run, answer)
    settings = settings_of_run(folder, run)
    if settings.outer:
        raise InputError(
            f"got {folder}, a run of fit --outer, whose problem is the network linearised at its own answer, "
            "expected one linearised at the pretrained weights: use tangentlora audit on its adapter"
        )
    read = read_answer(folder / chosen.folder / "solution.safetensors")
    prepared = prepare(
        settings if device is None else replace(settings, device=device), dev=dev, progress=progress
    )
    # the key as it would be on the run's own kind of device: that may differ, the rest may not
    identity = prepared.train.identity | {"device": torch.device(settings.device).type}
    labels = torch.as_tensor(read.labels)
    if key_of(identity) != run.tangent.get("key") or not torch.equal(labels, prepared.problem.y.cpu()):
        raise InputError(
            f"got {folder}, whose data, network or libraries have changed since it was written, expected "
            "those that run.json names: run fit again"
        )
    problem = prepared.problem
    factors = {
        name: (torch.from_numpy(u).to(problem.f0), torch.from_numpy(v).to(problem.f0))
        for name, (u, v) in read.factors.items()
    }
    problem.require_factors(factors, "run fit again")
    return Reopened(run, chosen, factors, prepared)


def settings_of_run(folder: Path, run: Run) -> Settings:
    """Return the settings that run.json records; raises InputError where they are damaged."""
    known = {field.name for field in fields(Settings)}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in completed(run.configuration).items()
        if name in known
    }
    try:
        readout = given["readout"]
        given["readout"] = READOUTS[readout["readout"]]
        given["tangent_dir"] = Path(given["tangent_dir"])
        start = {} if given.get("init_from") is None else {"start": "an adapter to continue from"}
        # an earlier version recorded what had no say as well
        return Settings(**used_only(given, {"solver": given["solver"], "readout": given["readout"]} | start))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"got {folder / 'run.json'}, whose configuration cannot be read ({type(error).__name__}: "
            f"{error}), expected the file as fit or demo wrote it: run fit again"
        ) from error


def _named(run: Run, name: str) -> Answer:
    for answer in run.answers:
        if answer.name == name:
            return answer
    raise InputError(
        f"got the answer {name!r}, expected one of {listing([a.name for a in run.answers])}, which the run "
        "folder holds: change --answer"
    )
