"""The certified optimum to a relative gap of 1e-6, against FISTA with full SVDs, SCS and Clarabel.

The problem is that of `planted.py`: N = 32, K = 2, two matrices of 768×768, λ a tenth and a hundredth of the
least λ at which δ = 0 is optimal. Ours counts everything from the tangent on: stating the problem, solving
and certifying it, nothing cached. The peers are those of `convex_peers.py`; theirs counts from the problem in
memory to the answer, without its certificate, and each runs in a process of its own, which is killed at the
limit: the ratio is then a lower bound, and named so. All times are processor seconds of one thread: a peer
takes minutes, in which the machine's other work would count otherwise. A ratio's spread is that of our
repeats, half before the peers and half after.

The same problem projected to smaller matrices shows that all agree on the optimum, and where SCS and Clarabel
still finish: each gets sizes that grow until it does not, and then the full size, all but the smallest at the
larger λ only, where they have least to do. Its target is held at the largest size at which it ran until it
was done or its time was up. Clarabel cannot have the full size in any memory that we know of: it would
factor a dense matrix of order 768·1,537 for each layer, 5.6 TB in float64.

    python benchmarks/certified_peers.py --peers fista scs --limit 60 --sides 16
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
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
ASKED = {"fista": SHARES, "scs": SHARES[:1], "clarabel": SHARES[:1]}
WORK, FULL = "the certified optimum, N = 32, K = 2, two matrices of", 768
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
    posed: Problem, folder: Path, options: argparse.Namespace, peers_of: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Return, for each λ, our seconds and certificate and what each of its peers came to."""
    path, largest, found = folder / "problem.safetensors", largest_lam(posed), []
    write(posed, path)
    for share, wanted in zip(SHARES, peers_of, strict=False):
        lam = share * largest
        certificate = solved(posed, lam)
        assert certificate.certified, certificate.sentence()
        before = [timed(posed, lam) for _ in range(options.repeats)]
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


def claims_of(sizes: dict[int, list[dict[str, Any]]]) -> list[Claim]:
    """Return a claim for each size, λ and peer, largest first; without an answer it is a lower bound."""
    made, held = [], set()
    for side in sorted(sizes, reverse=True):
        for each in sizes[side]:
            for peer, outcome in each["peers"].items():
                bound = outcome.objective is None
                name = f"{PEERS[peer]}, {outcome.ended}" if bound else PEERS[peer]
                what = f"{WORK} {side}×{side}, λ = {each['share']:g} of the largest"
                of_peer = (peer, each["share"])
                asked = outcome.ran and of_peer not in held and each["share"] in ASKED[peer]
                held |= {of_peer} if outcome.ran else set()
                target = TARGETS[peer] if asked else None
                made.append(claim(what, name, ratio(each["ours"], outcome), "at least", target, bound))
    return made


def grown(posed: Problem, folder: Path, options: argparse.Namespace) -> dict[int, list[dict[str, Any]]]:
    """Return what was found at every size: all peers at the smallest, then those that still finish."""
    found: dict[int, list[dict[str, Any]]] = {}
    still = list(options.peers)
    for side in sorted(options.sides):
        if not still:
            break
        small = planted(narrowed(posed.jacobian, side), posed.f0, lam=1.0)
        found[side] = compared(small, folder, options, [still] if found else [still, still])
        ended = {peer: outcome for each in found[side] for peer, outcome in each["peers"].items()}
        still = [peer for peer in still if peer != "fista" and ended[peer].objective is not None]
    rest = [peer for peer in options.peers if peer == "fista"]
    return found | {FULL: compared(posed, folder, options, [options.peers, rest])}


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
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 128], help="of smaller matrices")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = tangent(1)
    with tempfile.TemporaryDirectory() as folder:
        found = grown(planted(made.jacobian, made.f0, lam=1.0), Path(folder), options)
    result = {
        "what": f"{WORK} 768×768, to a relative gap of {TOLERANCE:g}",
        "claims": claims_of(found),
        "machine": machine(1),
        "repeats": options.repeats,
        "limit_seconds": options.limit,
        "agree_within": AGREE,
        "sides": {str(side): described(of_side) for side, of_side in found.items()},
    }
    report(result, options.output)


if __name__ == "__main__":
    main()
