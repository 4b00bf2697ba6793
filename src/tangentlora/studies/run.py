"""Trials on one problem → a run folder: answers, certificates, adapters, metrics and run.json."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tangentlora.adapters import loaded_outputs, write_adapter, zeroed
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.models.update import updated
from tangentlora.problem.ranks import ranks
from tangentlora.problem.spectral import product_singular_values
from tangentlora.report.folder import RunFolder
from tangentlora.report.record import FORMAT, Run
from tangentlora.report.standing import describe_standing
from tangentlora.report.verdict import headline
from tangentlora.solvers.solution import Solution
from tangentlora.studies.measure import (
    LinearisedSet,
    linearised_scores,
    linearised_sets,
    real_outputs,
    scores_of,
)
from tangentlora.studies.notes import order_note
from tangentlora.studies.prepare import Prepared, scores
from tangentlora.studies.standing import standing_of
from tangentlora.studies.trials import Trial
from tangentlora.studies.versions import versions
from tangentlora.theory.certificate import Certificate, certify
from tangentlora.theory.standing import Standing

VISIBLE_RANK = 1e-3
"""A trained answer's rank counts singular values above this fraction of the largest: those of a run that is
still converging fall off slowly, and the ones below change no output that anyone would see. The certified
answer has none of these, so its rank is that of its certificate."""

_ADAPTER_TOLERANCE = 1e-3
"""For outputs of a network with the adapter against one with the same update, relative to their size."""


@dataclass(frozen=True)
class Outcome:
    """One trial's answer with its certificate and what it does to the network."""

    trial: Trial
    solution: Solution
    certificate: Certificate
    linearised: dict[str, float]
    real: dict[str, float]
    standing: Standing
    seconds: float


def run_trials(
    prepared: Prepared,
    trials: Sequence[Trial],
    output_dir: Path,
    command: str = "fit",
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Run every trial, write the run folder as it goes, and return what run.json says.

    Every answer is put to the real network too: `real_network` says whether it holds there, `headline` what
    that means for the run.

    `command` is the verb that the folder is from. Each answer is written before the next trial starts.
    Raises InputError, before anything is written, where a solver does not suit the problem, and where the
    main answer's adapter, loaded back by PEFT, does not give the outputs of the update it stands for.
    """
    for trial in trials:
        trial.solver.check(prepared.problem)
    folder = RunFolder(output_dir)
    held_out = [part for part in linearised_sets(prepared) if part.which != "train"]
    before = _linearised(prepared, held_out, {})  # at W the linearised and the real network are the same
    metrics: list[str] = []
    entries: list[dict[str, Any]] = []
    for trial in trials:
        outcome = _run(prepared, held_out, trial, progress)
        entries.append(write_answer(prepared, outcome, folder))
        metrics += metric_lines(outcome)
        folder.write_text("metrics.jsonl", "".join(f"{line}\n" for line in metrics))
        described = describe(prepared, before, entries, command)
        folder.write_json("run.json", described)
        folder.seal(described)
    run: dict[str, Any] = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
    return run


def _run(prepared: Prepared, held_out: Sequence[LinearisedSet], trial: Trial, progress: bool) -> Outcome:
    start = time.perf_counter()
    solution = trial.solver.solve(
        prepared.problem,
        lambda _, factors: _linearised(prepared, held_out, factors),
        progress=progress,
        start=prepared.start,
    )
    seconds = time.perf_counter() - start
    certificate = certify(prepared.problem, solution, prepared.settings.tolerance)
    outputs = real_outputs(prepared, solution.factors)
    standing = standing_of(prepared, held_out, solution.factors, outputs, certificate.objective)
    linearised = _linearised(prepared, held_out, solution.factors)
    real = scores_of(prepared, outputs)
    return Outcome(trial, solution, certificate, linearised, real, standing, seconds)


def _linearised(prepared: Prepared, held_out: Sequence[LinearisedSet], factors: Factors) -> dict[str, float]:
    """Return accuracy and loss at uvᵀ: on the training set in float64, as the certificate sees it."""
    train = scores(prepared.problem.outputs(factors), prepared.splits.train.labels, "train")
    return train | linearised_scores(held_out, factors)


def write_answer(prepared: Prepared, outcome: Outcome, folder: RunFolder) -> dict[str, Any]:
    from safetensors.torch import save

    trial, solution, certificate = outcome.trial, outcome.solution, outcome.certificate
    adapter_error = _adapter_error(prepared, solution.factors) if trial.folder == "." else None
    prefix = "" if trial.folder == "." else f"{trial.folder}/"
    tensors = {"labels": prepared.problem.y.cpu()}
    for name, (u, v) in solution.factors.items():
        tensors |= {f"{name}/u": u.cpu().contiguous(), f"{name}/v": v.cpu().contiguous()}
    _write_adapter(prepared, solution.factors, folder.path / prefix / "adapter")
    files = {
        "solution.safetensors": folder.write_bytes(f"{prefix}solution.safetensors", save(tensors)),
        "certificate.json": folder.write_json(f"{prefix}certificate.json", asdict(certificate)),
    }
    return {
        "name": trial.name,
        "folder": trial.folder,
        "solver": trial.solver_name,
        "rank": trial.rank,
        "status": solution.status.name,
        "message": solution.status.value,
        "epochs": solution.epochs,
        "learning_rate": solution.learning_rate,
        "learning_rates": [list(rate) for rate in solution.rates],
        "objective": certificate.objective,
        "factored_objective": certificate.factored_objective,
        "lower_bound": certificate.lower_bound,
        "gap": certificate.gap,
        "relative_gap": certificate.relative_gap,
        "certified": certificate.certified,
        **rank_fields(solution, certificate, exact=trial.solver_name == "certified"),
        "linearised": outcome.linearised,
        "real": outcome.real,
        "real_network": describe_standing(outcome.standing),
        "adapter_error": adapter_error,
        "seconds": round(outcome.seconds, 3),
        "sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
    }


def rank_fields(solution: Solution, certificate: Certificate, *, exact: bool) -> dict[str, Any]:
    """Return what is recorded of an answer's rank: the certificate's count with `exact`, else what shows."""
    visible = certificate.ranks if exact else ranks(solution.problem, solution.factors, VISIBLE_RANK)
    return {
        "rank_reached": sum(visible.values()),
        "ranks": visible,
        "singular_values": {
            name: product_singular_values(u, v).tolist() for name, (u, v) in solution.factors.items()
        },
    }


def _write_adapter(prepared: Prepared, factors: Factors, folder: Path) -> Path | None:
    return write_adapter(
        factors,
        prepared.targets,
        folder,
        module=prepared.network.module,
        base_model=prepared.settings.model,
        revision=prepared.settings.revision,
        saved=prepared.saved,
    )


def _adapter_error(prepared: Prepared, factors: Factors) -> float | None:
    """Load an adapter of the factors with PEFT and return the largest difference of an output on a batch."""
    inputs = prepared.splits.train.inputs[: prepared.settings.batch_size]
    with tempfile.TemporaryDirectory() as folder:
        adapter = _write_adapter(prepared, factors, Path(folder) / "adapter")
        if adapter is None:
            return None
        with zeroed(prepared.network.module, prepared.saved):  # the adapter is to bring them along
            loaded = loaded_outputs(prepared.network, adapter, inputs)
    with updated(prepared.network, prepared.targets, factors):
        expected = prepared.network.predict(inputs)
    error = float((loaded - expected).abs().max())
    exact = prepared.settings.dtype != "bfloat16"  # which rounds W + δ itself to three digits
    if exact and error > _ADAPTER_TOLERANCE * max(1.0, float(expected.abs().max())):
        raise InputError(
            f"got outputs that differ by {error:.1e} after loading the adapter with PEFT, expected those "
            "of the answer: update peft, and report the versions that `tangentlora doctor` prints"
        )
    return error


def metric_lines(outcome: Outcome) -> list[str]:
    """Return the lines of metrics.jsonl, with null for every number that is not finite."""
    rows = [{"run": outcome.trial.name, **asdict(record)} for record in outcome.solution.history]
    return [json.dumps(json.loads(json.dumps(row), parse_constant=lambda _: None)) for row in rows]


def describe(
    prepared: Prepared, before: dict[str, float], entries: list[dict[str, Any]], command: str
) -> dict[str, Any]:
    settings, train, problem = prepared.settings, prepared.train, prepared.problem
    test = prepared.splits.test
    configuration = asdict(settings) | {
        "tangent_dir": str(settings.tangent_dir),
        "loss": problem.loss.name,
        "readout": prepared.network.reader.describe(),
    }
    shapes = problem.jacobian.shapes
    run = {
        "format": FORMAT,
        "tangentlora": version("tangentlora"),
        "command": command,
        "configuration": configuration,
        "versions": versions(),
        "data": {
            "source": prepared.splits.source,
            "task": prepared.splits.task.name,
            "label_names": list(prepared.splits.task.labels),
            "n_train": len(prepared.splits.train),
            "n_test": len(test) if test is not None else 0,
            "check": prepared.check.describe(),
            "order": order_note(prepared.network, prepared.splits.task),
            "cut": {part: found.describe() for part, found in prepared.cut.items()},
        },
        "tangent": {
            "key": train.key,
            "store": str(train.source),
            "n_examples": train.jacobian.n_examples,
            "n_outputs": train.jacobian.n_outputs,
            "shapes": {name: list(shape) for name, shape in shapes.items()},
            "bytes": train.jacobian.nbytes,
            "dense_bytes": 4 * problem.f0.numel() * sum(m * n for m, n in shapes.values()),
            "constraints": problem.constraints,
        },
        "before": before,
        "sealed": True,
        "runs": entries,
    }
    read = Run.parse(run)
    main = next(entry for entry in entries if entry["name"] == read.main.name)
    return {"headline": headline(read), "real_network": main["real_network"]} | run
