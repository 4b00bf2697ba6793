"""Theorem 2 put to the test: runs on tiny random problems, above and below r(r+1)/2 > c, and on planted ones.

Every problem is perturbed by its own random Π and run from all starts, at rank 1, at the last rank below the
threshold, at the threshold and one above it. A run counts as at the optimum only if the duality gap of the
perturbed objective says so. The planted problems have a spurious minimum at rank one that is known in closed
form: a study that found none there would be blind.

    PYTHONPATH=tests python benchmarks/landscape.py --problems 64 --output landscape.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

from known_problems import largest_lam
from random_problems import random_problem
from spurious_problems import Planted
from tangentlora.problem.objective import Problem
from tangentlora.studies.landscape import Landscape, Outcome, survey
from tangentlora.theory.rank_rules import least_rank

LOSSES = ("cross_entropy", "logistic", "squared")
SHAPES = (((4, 4),), ((6, 5),), ((8, 7),), ((4, 5), (5, 4)), ((6, 4), (4, 6)))
SHARES = (0.02, 0.06, 0.2)
SIZE = 1e-3
"""‖Π_t‖₂ relative to λ."""


def posed(index: int) -> Problem:
    """Return a random problem with N = 3–6, one or two outputs that matter, and one or two layers."""
    loss = LOSSES[index % 3]
    outputs = {"cross_entropy": 2, "logistic": 1, "squared": 1 + index // 3 % 2}[loss]
    n = 3 + index % 4 if outputs == 1 or loss == "cross_entropy" else 3
    problem = random_problem(
        100 + index, loss, n_examples=n, n_outputs=outputs, shapes=SHAPES[index % len(SHAPES)]
    )
    return problem.with_lam(SHARES[index // 2 % 3] * largest_lam(problem))


def planted(index: int) -> Planted:
    """Return a problem with a known spurious minimum at rank one, turned by its index."""
    return Planted(
        w=0.04 + 0.02 * (index % 3), t=0.2 + 0.1 * (index % 4), lam=0.01, m=4 + index % 3, n=5, seed=index
    )


def main() -> None:
    """Run the study, print the counts and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--planted", type=int, default=12)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    began = time.perf_counter()
    counts: dict[str, Counter[str]] = {}
    ratios, escapes, gaps, known = [], Counter[str](), [], 0

    def tally(kind: str, landscape: Landscape) -> None:
        for run in landscape.runs:
            where = "from the threshold on" if run.rank >= landscape.threshold else "below the threshold"
            counts.setdefault(f"{kind}, {where}", Counter())[run.outcome.value] += 1
            escapes[f"{kind}, {where}"] += run.left
            if run.outcome is Outcome.GLOBAL_OPTIMUM:
                gaps.append(run.gap / max(1.0, run.value))
        for run in landscape.against:
            print("AGAINST", kind, run.rank, run.start, run.value, run.gap, run.point.sentence())
        ratios.append(landscape.excess / landscape.cost)

    for index in range(options.problems):
        problem = posed(index)
        threshold = least_rank(problem.constraints)
        ranks = sorted({1, threshold - 1, threshold, threshold + 1})
        tally("random", survey(problem, ranks, size=SIZE * problem.lam, seed=index))
    for index in range(options.planted):
        case = planted(index)
        landscape = survey(case.problem, (1, 2, 3, 4), size=SIZE * case.lam, repeats=4, seed=index)
        tally("planted", landscape)
        spurious = [run.value for run in landscape.runs if run.outcome is Outcome.SPURIOUS_MINIMUM]
        known += any(abs(value - case.value(-1)) < 1e-3 for value in spurious)
    result = {
        "problems": {"random": options.problems, "planted": options.planted},
        "runs": {name: dict(found) for name, found in counts.items()},
        "saddles_left": dict(escapes),
        "planted_minimum_found_in": known,
        "largest_relative_gap_of_a_global_optimum": max(gaps),
        "largest_excess_to_its_bound": max(ratios),
        "seconds": round(time.perf_counter() - began),
    }
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
