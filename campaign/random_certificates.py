"""Certify random problems of every regime and hold each certificate against extended precision.

python campaign/random_certificates.py --problems 20000 --seed 0
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time

from extended import require_extended
from judge import Verdict, judge
from regimes import REGIMES

_WRONG = (
    "exception",
    "not finite",
    "false bound",
    "false gap",
    "false certificate",
    "false number",
    "false norm",
    "false count",
    "contradiction",
    "worse than known",
)


def main() -> int:
    """Run the campaign; exit with 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="the first of the problems' seeds")
    parser.add_argument("--regime", choices=REGIMES, action="append", help="only this one; all by default")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    require_extended()
    names = given.regime or list(REGIMES)
    jobs = [(names[i % len(names)], given.seed + i // len(names)) for i in range(given.problems)]
    print(f"{len(jobs)} problems of {len(names)} regimes, seeds {given.seed} to {jobs[-1][1]}", flush=True)
    total, started = Verdict(), time.monotonic()
    pool = multiprocessing.get_context("spawn").Pool(given.processes, _one_thread)
    for done, verdict in enumerate(pool.imap_unordered(_judge, jobs, chunksize=16), 1):
        for finding in verdict.findings:
            print(finding, flush=True)
        total += verdict
        if done % 2000 == 0:
            print(f"{done} problems, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    pool.close()
    pool.join()
    for kind in ("problems", "certificates", "certified", "counts of outputs", "refused", *_WRONG):
        print(f"{kind:20} {total.counts[kind]}")
    for kind in sorted(total.counts):
        if kind.startswith("refused in"):
            print(f"{kind:20} {total.counts[kind]}")
    return int(any(total.counts[kind] for kind in _WRONG))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _judge(job: tuple[str, int]) -> Verdict:
    return judge(*job)


if __name__ == "__main__":
    sys.exit(main())
