"""A certified optimum of 20,000 examples, and linearising RoBERTa-base, within 4 GB of memory.

The rows are those of `planted_rows.py` for a query matrix of one head and a value matrix of twelve, K = 2, in
a store on disk, written piece by piece by another process. A fresh process reads them shard by shard, makes
the labels, solves and certifies to a relative gap of 1e-6, under a limit (RLIMIT_DATA) of 4 GB on what it may
allocate, in which mapped files do not count. For the solve in memory the prediction stands beside it. RoBERTa
is that of `linearize_roberta.py` on prompts of natural length, query and value of the last layer; each number
of examples has a process of its own, under the same limit, which begins with an empty store. Peak memory is
the largest resident set, mapped files included; beside it stands the largest anonymous part, seen every 20
ms.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from certified_scaling import memory
from linearize_roberta import build
from outcome import Claim, claim, machine, report
from paper_protocol import prompts
from planted_rows import SIDE, labels, outputs_at_zero, pieces, posed

from tangentlora import Certified, linearize
from tangentlora.models.targets import Target
from tangentlora.solvers.memory import solve_bytes
from tangentlora.tangent.plan import ProblemShape, predicted_peak
from tangentlora.tangent.store_writer import ShardEntry, ShardWriter
from tangentlora.tangent.stored import in_blocks
from tangentlora.theory.certificate import certify

HEADS = {"query": 1, "value": 12}
EXAMPLES, OUTPUTS, SEED, SHARE, TOLERANCE = 20_000, 2, 0, 0.1, 1e-6
PROMPTS = (256, 1024)
LIMIT, GIGA = 4.0, 10**9
SHARDS = "shards.json"


def write(folder: Path, examples: int) -> None:
    """Write the rows to a store, piece by piece, and the list of its shards."""
    writer, f0, start = ShardWriter(folder), outputs_at_zero(examples, OUTPUTS, SEED), 0
    for layers in pieces(examples, OUTPUTS, HEADS, SEED):
        stop = start + len(next(iter(layers.values())).counts)
        writer.add(torch.arange(start, stop), f0[start:stop], layers)
        start = stop
    (folder / SHARDS).write_text(json.dumps([asdict(shard) for shard in writer.close()]))


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Yield a dict that has, at the end, the seconds and the peaks of memory of this process."""
    found: dict[str, Any] = {}
    largest, over = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not over.wait(0.02):
            largest = max(largest, memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, used = time.perf_counter(), time.process_time()
    try:
        yield found
    finally:
        found |= {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - used}
        over.set()
        watcher.join()
        found |= {"peak_bytes": memory("VmHWM"), "peak_anonymous_bytes": largest}


def solve(folder: Path) -> dict[str, Any]:
    """Solve and certify from the store, block by block."""
    shards = [ShardEntry(**entry) for entry in json.loads((folder / SHARDS).read_text())]
    targets = [Target(name, name, (SIDE, SIDE)) for name in HEADS]
    with watched() as found:
        f0, jacobian = in_blocks(folder, shards, targets)
        problem = posed(jacobian, f0, labels(jacobian, SEED), SHARE)
        solution = Certified(TOLERANCE).solve(problem)
        certificate = certify(problem, solution, TOLERANCE)
    assert certificate.certified, certificate.sentence()
    rank = sum(certificate.ranks.values())
    rows = {name: len(f0) * number for name, number in HEADS.items()}
    shape = ProblemShape(len(f0), OUTPUTS, OUTPUTS - 1, rows, jacobian.shapes, HEADS)
    return found | {
        "examples": len(f0),
        "shards": len(shards),
        "stored_bytes": sum(shard.bytes for shard in shards),
        "predicted_bytes_in_memory": predicted_peak(shape, solver=solve_bytes(shape, rank)),
        "products": solution.epochs,
        "rounds": len(solution.history),
        "rank": rank,
        "relative_gap": certificate.relative_gap,
    }


def stream(folder: Path, examples: int, threads: int) -> dict[str, Any]:
    """Linearise prompts into a new store, whose rows stay there."""
    network, _ = build(threads)
    inputs = prompts(examples)
    with watched() as found:
        linearize(network, inputs, store=folder, in_blocks=True)
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return found | {"examples": examples, "stored_bytes": stored}


def in_process(options: argparse.Namespace, *job: str) -> dict[str, Any]:
    """Run one job in a process of its own under the limit."""
    command = [sys.executable, __file__, "--threads", str(options.threads), "--limit", str(options.limit)]
    done = subprocess.run([*command, "--job", *job], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def run(job: list[str], threads: int) -> dict[str, Any]:
    """Do the job of a process of its own."""
    torch.set_num_threads(threads)
    kind, folder, examples = job[0], Path(job[1]), int(job[2])
    if kind == "write":
        write(folder, examples)
        return {"written": examples}
    return solve(folder) if kind == "solve" else stream(folder, examples, threads)


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return the rows of docs/benchmarks.md: the peak over the limit, and its growth with the examples."""

    def row(work: str, peer: str, ratio: float, target: float | None) -> Claim:
        return claim(work, peer, dict.fromkeys(("min", "median", "max"), ratio), "at most", target)

    limit, solved, streamed = result["limit_bytes"], result["solved"], result["streamed"]
    peer = f"{limit / GIGA:g} GB: the peak of memory over it"
    rows = [
        row(
            f"certify N = {solved['examples']:,}, K = 2, from a store",
            peer,
            solved["peak_bytes"] / limit,
            1.0,
        )
    ]
    work = "linearise RoBERTa-base into a store,"
    rows += [row(f"{work} N = {e['examples']:,}", peer, e["peak_bytes"] / limit, 1.0) for e in streamed]
    if len(streamed) > 1:
        few, many = streamed[0], streamed[-1]
        times = many["examples"] / few["examples"]
        name = f"a number of examples {times:g} times smaller: the peak of memory over its"
        rows.append(
            row(f"{work} N = {many['examples']:,}", name, many["peak_bytes"] / few["peak_bytes"], None)
        )
    return rows


def main() -> None:
    """Run the benchmark, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="of no use: one run takes long enough")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="to solve with")
    parser.add_argument("--prompts", type=int, nargs="*", default=list(PROMPTS), help="to linearise")
    parser.add_argument("--limit", type=float, default=LIMIT, help="gigabytes")
    parser.add_argument(
        "--job", nargs=3, metavar=("KIND", "FOLDER", "EXAMPLES"), help="do this, and print it"
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    limit = round(options.limit * GIGA)
    if options.job:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        print(json.dumps(run(options.job, options.threads)))
        return
    streamed = []
    with tempfile.TemporaryDirectory() as folder:
        in_process(options, "write", folder, str(options.examples))
        solved = in_process(options, "solve", folder, str(options.examples))
    for count in options.prompts:
        with tempfile.TemporaryDirectory() as folder:
            streamed.append(in_process(options, "stream", folder, str(count)))
    result = {
        "what": "peak memory of a certified solve from a store, and of linearising into one",
        "machine": machine(options.threads),
        "repeats": 1,
        "limit_bytes": limit,
        "limit": "RLIMIT_DATA",
        "tolerance": TOLERANCE,
        "solved": solved,
        "streamed": streamed,
    }
    report({**result, "claims": claims(result)}, options.output)


if __name__ == "__main__":
    main()
