"""The certified optimum to a relative gap of 1e-6, against FISTA with full SVDs, SCS and Clarabel.

The problem is that of `planted.py`: N = 32, K = 2, two matrices of 768×768, λ a tenth and a hundredth of the
least λ at which δ = 0 is optimal. Ours counts everything from the tangent on: stating the problem, solving
and certifying it, nothing cached. The peers are those of `convex_peers.py`; theirs counts from the problem in
memory to the answer, without its certificate, and each runs in a process of its own, which is killed at the
limit: the ratio is then a lower bound, and named so. The same problem projected to smaller matrices, which
all of them manage, shows that all four agree on the optimum; it has no targets. SCS and Clarabel get the full
size at the larger λ only, where they have least to do. All times are processor seconds of one thread: a peer
takes minutes, in which the machine's other work would count otherwise. A ratio's spread is that of our
repeats, half before the peers and half after.

    python benchmarks/certified_peers.py --peers fista scs --limit 60 --side 16
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from convex_peers import PEERS, TOLERANCE, Outcome, in_process
from outcome import Claim, claim, machine, report, spread
from planted import largest_lam, narrowed, planted, tangent, write

from tangentlora import Certified, Problem
from tangentlora.theory.certificate import Certificate, certify

SHARES = (0.1, 0.01)
TARGETS = {"fista": 100, "scs": 1000, "clarabel": 1000}
AGREE = 1e-5


def solved(posed: Problem, lam: float) -> Certificate:
    """State the problem anew, solve it and certify the answer."""
    fresh = Problem(posed.jacobian, posed.f0, posed.y, posed.loss, lam)
    return certify(fresh, Certified(TOLERANCE).solve(fresh), TOLERANCE)


def timed(posed: Problem, lam: float) -> float:
    """Return the processor seconds of `solved`."""
    began = time.process_time()
    solved(posed, lam)
    return time.process_time() - began


def compared(
    posed: Problem, folder: Path, options: argparse.Namespace, *, brief: bool
) -> list[dict[str, Any]]:
    """Return, for each λ, our seconds and certificate and what every peer came to; see above for `brief`."""
    path, largest, found = folder / "problem.safetensors", largest_lam(posed), []
    write(posed, path)
    for share in SHARES:
        lam = share * largest
        certificate = solved(posed, lam)
        assert certificate.certified, certificate.sentence()
        before = [timed(posed, lam) for _ in range(options.repeats)]
        wanted = [peer for peer in options.peers if peer == "fista" or share == SHARES[0] or not brief]
        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes = pool.map(
                lambda peer, lam=lam: in_process(peer, path, lam, 1, options.limit, options.memory), wanted
            )
            peers = dict(zip(wanted, outcomes, strict=True))
        ours = before + [timed(posed, lam) for _ in range(options.repeats)]
        for peer, outcome in peers.items():
            if outcome.objective is not None:
                apart = abs(outcome.objective - certificate.objective)
                assert apart <= AGREE * max(1.0, certificate.objective), f"{peer} is {apart:.1e} away"
        found.append({"share": share, "certificate": certificate, "ours": ours, "peers": peers})
    return found


def ratio(ours: list[float], outcome: Outcome) -> dict[str, float]:
    """Return how many times as long the peer took, or at least took, as our runs."""
    return spread([outcome.seconds / mine for mine in ours])


def described(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was found, for JSON."""
    return [
        {
            "lam": certificate.lam,
            "share_of_largest_lam": each["share"],
            "objective": certificate.objective,
            "relative_gap": certificate.relative_gap,
            "ranks": list(certificate.ranks.values()),
            "seconds_median": statistics.median(each["ours"]),
            "peers": {
                peer: asdict(outcome)
                | {"ratio": ratio(each["ours"], outcome), "bound": outcome.objective is None}
                for peer, outcome in each["peers"].items()
            },
        }
        for each in found
        for certificate in [each["certificate"]]
    ]


def claims_of(found: list[dict[str, Any]], work: str, targets: dict[str, int]) -> list[Claim]:
    """Return a claim for each λ and peer; a peer without an answer gives a lower bound."""
    made = []
    for each in found:
        for peer, outcome in each["peers"].items():
            bound = outcome.objective is None
            name = f"{PEERS[peer]}, {outcome.ended}" if bound else PEERS[peer]
            what = f"{work}, λ = {each['share']:g} of the largest"
            made.append(claim(what, name, ratio(each["ours"], outcome), "at least", targets.get(peer), bound))
    return made


def main() -> None:
    """Run the benchmark, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=5, help="of our solve, before and after each λ's peers"
    )
    parser.add_argument(
        "--limit", type=float, default=600.0, help="processor seconds for one solve of a peer"
    )
    parser.add_argument("--memory", type=float, default=16.0, help="gigabytes for a peer")
    parser.add_argument("--jobs", type=int, default=1, help="peers at a time")
    parser.add_argument("--side", type=int, default=32, help="of the smaller problem's matrices")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = tangent(1)
    whole = planted(made.jacobian, made.f0, lam=1.0)
    small = planted(narrowed(made.jacobian, options.side), made.f0, lam=1.0)
    with tempfile.TemporaryDirectory() as folder:
        smaller = compared(small, Path(folder), options, brief=False)
        full = compared(whole, Path(folder), options, brief=True)
    work = f"the certified optimum, N = {len(whole.f0)}, K = 2, two matrices of"
    side = options.side
    result = {
        "what": f"{work} 768×768, to a relative gap of {TOLERANCE:g}",
        "claims": [
            *claims_of(full, f"{work} 768×768", TARGETS),
            *claims_of(smaller, f"{work} {side}×{side}", {}),
        ],
        "machine": machine(1),
        "repeats": options.repeats,
        "limit_seconds": options.limit,
        "full": described(full),
        "smaller": {"side": side, "agree_within": AGREE, "solves": described(smaller)},
    }
    report(result, options.output)


if __name__ == "__main__":
    main()
