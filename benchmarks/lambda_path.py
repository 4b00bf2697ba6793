"""The certified λ path of a k-shot task against its hardest single solve.

50 points from the λ at which δ = 0 is optimal down to a thousandth of it, each certified. The peer is a cold
start at each of the same λ: the problem as it was linearised, solved and certified, nothing shared. Both are
timed in turn. The hardest single solve is the λ whose median over the turns is largest, since the largest of
50 single times would be that of a hiccup; every path is held against that median.

    python benchmarks/lambda_path.py --data k-shot/SST-2/16-13 --task sst2
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from outcome import Claim, claim, machine, report, seconds, spread

from tangentlora.problem.objective import Problem
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.path import spaced
from tangentlora.studies.path import certified_path, zero_is_optimal_from
from tangentlora.studies.prepare import prepare
from tangentlora.studies.settings import Settings
from tangentlora.theory.certificate import certify

POINTS, FRACTION = 50, 1e-3


def fresh(problem: Problem, lam: float) -> Problem:
    """Return the problem without anything that an earlier solve may have computed."""
    return Problem(problem.jacobian, problem.f0, problem.y, problem.loss, lam)


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return the rows of docs/benchmarks.md."""
    hardest, whole = result["path_to_hardest_single"], result["path_to_all_single"]
    return [
        claim(result["what"], "the hardest single solve: our time over its", hardest, "at most", 5.0),
        claim(result["what"], "all single solves together: our time over theirs", whole, "at most", None),
    ]


def main() -> None:
    """Time paths and cold solves in turn, print the ratios and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="support")
    parser.add_argument("--task")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            data=options.data, task=options.task, readout="prototypes", test_limit=1, tangent_dir=Path(folder)
        )
        prepared = prepare(settings)
    problem = prepared.problem
    lams = spaced(zero_is_optimal_from(problem), FRACTION, POINTS)

    def path() -> None:
        answers = certified_path(fresh(problem, lams[0]), lams)
        assert all(certificate.certified for _, certificate in answers)

    def cold(lam: float) -> None:
        posed = fresh(problem, lam)
        assert certify(posed, Certified().solve(posed)).certified

    path()
    turns = []
    for _ in range(options.repeats):
        whole = seconds(path)
        turns.append((whole, [seconds(lambda lam=lam: cold(lam)) for lam in lams]))
    hardest = max(statistics.median(times) for times in zip(*(single for _, single in turns), strict=True))
    n, k = problem.f0.shape
    result = {
        "what": f"{POINTS} certified points down to {FRACTION:g} of the largest λ, "
        f"{prepared.splits.task.name}, N = {n}, K = {k}",
        "machine": machine(options.threads),
        "repeats": options.repeats,
        "path_to_hardest_single": spread([whole / hardest for whole, _ in turns]),
        "path_to_all_single": spread([whole / sum(single) for whole, single in turns]),
        "seconds_median": {"path": statistics.median(whole for whole, _ in turns), "hardest_single": hardest},
    }
    report({**result, "claims": claims(result)}, options.output)


if __name__ == "__main__":
    main()
