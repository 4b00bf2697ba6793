"""How the certified optimum's time grows with N, K and T, and whether its memory was foretold.

Every point states, solves and certifies a problem of `planted_rows.py`, T matrices of twelve heads, in a
process of its own on one thread. λ is a tenth of the least at which δ = 0 is optimal, and the certificate
must show a relative gap of 1e-6 at most. The exponent is the least-squares slope of log processor seconds
against the log of what grows; for K it stands against K, and beside it against the K−1 contrasts that are
solved with. Peak memory is the process's largest resident set while it solves and certifies, without what the
labels took; the prediction, of `solvers/memory.py`, is what the process held before the rows were made, the
rows, and a tenth over the rows and what the solver takes beyond them at the rank it found.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from outcome import Claim, claim, machine, report
from planted_rows import in_memory, labels, outputs_at_zero, posed

from tangentlora import Certified, CrossEntropy, Problem
from tangentlora.solvers.memory import solve_bytes
from tangentlora.tangent.plan import ProblemShape, predicted_peak
from tangentlora.theory.certificate import certify

SEED, SHARE, TOLERANCE, HEADS = 0, 0.1, 1e-6, 12
SCANS = {
    "N": [(n, 2, 2) for n in (32, 128, 512, 2048, 4096)],
    "K": [(256, k, 2) for k in (2, 3, 5, 10, 20)],
    "T": [(128, 2, t) for t in (1, 2, 4, 8, 16, 24)],
}
LARGEST_EXPONENT = 1.1
KEPT = 1.1  # as the plan of a command has it: an allocator keeps some of what is freed
MEMORY = (1.0, 1.5)  # of the prediction over the measured peak


def memory(field: str) -> int:
    """Return a line of /proc/self/status in bytes: VmHWM is the largest resident set, VmRSS that of now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Let VmHWM begin anew from the resident set of now."""
    Path("/proc/self/clear_refs").write_text("5")


def point(n: int, k: int, t: int) -> dict[str, Any]:
    """Solve and certify one problem, and return its figures."""
    torch.set_num_threads(1)
    certify_small()
    held = memory("VmRSS")
    jacobian = in_memory(n, k, {f"value {layer}": HEADS for layer in range(t)}, SEED)
    f0, y = outputs_at_zero(n, k, SEED), labels(jacobian, SEED)
    lam = posed(jacobian, f0, y, SHARE).lam
    forget_peak()
    began, used = time.perf_counter(), time.process_time()
    problem = Problem(jacobian, f0, y, CrossEntropy(), lam)
    solution = Certified(TOLERANCE).solve(problem)
    certificate = certify(problem, solution, TOLERANCE)
    used, spent = time.process_time() - used, time.perf_counter() - began
    assert certificate.certified, certificate.sentence()
    rows = dict.fromkeys(jacobian.layers, n * HEADS)
    shape = ProblemShape(n, k, k - 1, rows, jacobian.shapes, dict.fromkeys(rows, HEADS))
    rank = sum(certificate.ranks.values())
    return {
        "N": n,
        "K": k,
        "T": t,
        "processor_seconds": used,
        "seconds": spent,
        "products": solution.epochs,
        "rounds": len(solution.history),
        "rank": rank,
        "relative_gap": certificate.relative_gap,
        "peak_bytes": memory("VmHWM"),
        "predicted_bytes": held + round(KEPT * predicted_peak(shape, solver=solve_bytes(shape, rank))),
    }


def certify_small() -> None:
    """Solve a tiny problem, so that everything is loaded before anything is measured."""
    jacobian = in_memory(4, 2, {"warm": 1}, SEED, side=8)
    problem = posed(jacobian, outputs_at_zero(4, 2, SEED), labels(jacobian, SEED), SHARE)
    certify(problem, Certified(TOLERANCE).solve(problem), TOLERANCE)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the least-squares slope of log y against log x."""
    x, y = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    return statistics.linear_regression(x, y).slope


def in_process(n: int, k: int, t: int) -> dict[str, Any]:
    """Run `point` in a process of its own."""
    command = [sys.executable, __file__, "--point", str(n), str(k), str(t)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def exponents(scans: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Return the exponent of each scan's processor seconds, and that in the contrasts K−1."""
    found = {
        name: slope([(each[name], each["processor_seconds"]) for each in points])
        for name, points in scans.items()
        if len(points) > 1
    }
    if "K" in found:
        found["K - 1"] = slope([(each["K"] - 1, each["processor_seconds"]) for each in scans["K"]])
    return found


def foretold(scans: dict[str, list[dict[str, Any]]]) -> list[float]:
    """Return the predicted over the measured peak of every point."""
    return [each["predicted_bytes"] / each["peak_bytes"] for points in scans.values() for each in points]


def claims_of(scans: dict[str, list[dict[str, Any]]]) -> list[Claim]:
    """Return the rows of docs/benchmarks.md."""
    rows = []
    for name, exponent in exponents(scans).items():
        of = name[0]
        values = [each[of] for each in scans[of]]
        work = f"the certified optimum, {of} from {min(values)} to {max(values)}, matrices of 768×768"
        peer = f"its own smallest problem: exponent of the processor time in {name}"
        target = LARGEST_EXPONENT if name in SCANS else None
        rows.append(claim(work, peer, dict.fromkeys(("min", "median", "max"), exponent), "at most", target))
    ratios = foretold(scans)
    work = f"the memory of the certified optimum, {len(ratios)} problems"
    for direction, end, bound in (("at least", min(ratios), MEMORY[0]), ("at most", max(ratios), MEMORY[1])):
        peer = (
            f"the peak measured: the {'least' if direction == 'at least' else 'largest'} prediction over it"
        )
        rows.append(claim(work, peer, dict.fromkeys(("min", "median", "max"), end), direction, bound))
    return rows


def main() -> None:
    """Run the benchmark, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scans", nargs="+", choices=SCANS, default=list(SCANS))
    parser.add_argument("--most", type=int, default=10**9, help="N·K·T of the largest problem")
    parser.add_argument("--repeats", type=int, default=1, help="of every point; the fastest one counts")
    parser.add_argument("--point", type=int, nargs=3, help="measure this N, K and T alone, and print it")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(point(*options.point)))
        return
    scans = {
        name: [
            min((in_process(*size) for _ in range(options.repeats)), key=lambda p: p["processor_seconds"])
            for size in SCANS[name]
            if math.prod(size) <= options.most
        ]
        for name in options.scans
    }
    result = {
        "what": "processor time and peak memory of the certified optimum against N, K and T",
        "machine": machine(1),
        "repeats": options.repeats,
        "tolerance": TOLERANCE,
        "exponents": exponents(scans),
        "prediction_over_peak": foretold(scans),
        "scans": scans,
        "claims": claims_of(scans),
    }
    report(result, options.output)


if __name__ == "__main__":
    main()
