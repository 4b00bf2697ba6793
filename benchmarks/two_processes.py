"""Linearising with two processes of one thread each, against one process of one thread.

RoBERTa-base from its configuration, query and value of the last layer, prompts of natural length in batches
of 32, written to a store and read back. Four processes of this script wait for orders: two that know nothing
of each other, and two that are joined by gloo as torchrun joins them. One of the first linearises alone, then
the joined two together, in turn, timed inside; loading is not counted. The time of two is that of the slower.

Beside it stands what the machine itself allows: plain forward passes over the same prompts in one process,
and in the two that are not joined, each of which takes every second prompt by length.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linearize_roberta import EXAMPLES, plain_forward
from outcome import Claim, claim, machine, report, seconds, spread
from paper_protocol import TEST, N, natural, prompts

from tangentlora import linearize, processes

TARGET = 1.8


def work(examples: int) -> None:
    """Be one of the processes: do each job that a line of standard input asks for, and print its seconds."""
    processes.join()
    network = natural(threads=1)
    inputs = prompts(examples)
    by_length = [i for batch in network.batches(network.reader.encode(inputs), EXAMPLES) for i in batch.index]
    linearize(network, inputs[: 2 * EXAMPLES])
    print("ready", flush=True)
    for line in sys.stdin:
        job, share, given = line.split()
        processes.barrier("start")
        before = time.process_time()
        if job == "forward":
            mine = [inputs[i] for i in by_length[int(share) :: int(given)]]
            took = seconds(lambda mine=mine: plain_forward(network, mine))  # type: ignore[misc]
        else:
            folder = Path(given)
            took = seconds(lambda folder=folder: linearize(network, inputs, store=folder))  # type: ignore[misc]
        print(took, time.process_time() - before, flush=True)


class Worker:
    """A process of this script that waits for orders."""

    def __init__(self, examples: int, told: Mapping[str, object]) -> None:
        command = [sys.executable, __file__, "--worker", "--examples", str(examples)]
        single = {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1}
        environment = {**os.environ, **{key: str(value) for key, value in {**single, **told}.items()}}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip():  # the tokenizer's training ends lines on its own
                return line.strip()
        raise RuntimeError("a process ended early")

    def order(self, *words: object) -> None:
        """Give it a job."""
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)

    def end(self) -> None:
        """Let it end, and wait until it has."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:  # one that still loads, after another has failed
            self._process.kill()


def joined(examples: int) -> list[Worker]:
    """Start two processes that meet each other."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    told = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [Worker(examples, {**told, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(2)]


def linearise(workers: Sequence[Worker]) -> list[list[float]]:
    """Return each one's seconds and processor seconds; they have a store of their own."""
    with tempfile.TemporaryDirectory() as folder:
        for worker in workers:
            worker.order("linearise", 0, Path(folder) / "tangents")
        return [[float(part) for part in worker.line().split()] for worker in workers]


def forward(workers: Sequence[Worker]) -> list[list[float]]:
    """Return each one's seconds and processor seconds for its share of the prompts."""
    for number, worker in enumerate(workers):
        worker.order("forward", number, len(workers))
    return [[float(part) for part in worker.line().split()] for worker in workers]


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return the rows of docs/benchmarks.md: how many times as fast two processes are."""

    def ratio(job: str) -> dict[str, float]:
        one, two = (
            [
                max(seconds for seconds, _ in turn)
                for turn in result["seconds_and_processor_seconds"][job][count]
            ]
            for count in ("one", "two")
        )
        return spread([alone / together for alone, together in zip(one, two, strict=True)])

    peer = "one process of one thread: its time over that of two"
    data = f"{result['prompts']} prompts"
    allowed = f"plain forward passes over {data} with two processes: what the machine allows"
    return [
        claim(f"linearise {data} with two processes", peer, ratio("linearise"), "at least", TARGET),
        claim(allowed, peer, ratio("forward"), "at least", None),
    ]


def main() -> None:
    """Run the benchmark, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, choices=[1], help="of each process")
    parser.add_argument("--examples", type=int, default=N + TEST)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.examples)
        return
    single, pair = [Worker(options.examples, {}) for _ in range(2)], joined(options.examples)
    times: dict[str, dict[str, list[list[list[float]]]]] = {
        job: {"one": [], "two": []} for job in ("linearise", "forward")
    }
    try:
        for worker in (*single, *pair):
            worker.line()
        for _ in range(options.repeats):
            times["linearise"]["one"].append(linearise(single[:1]))
            times["linearise"]["two"].append(linearise(pair))
            times["forward"]["one"].append(forward(single[:1]))
            times["forward"]["two"].append(forward(single))
    finally:
        for worker in (*single, *pair):
            worker.end()
    result: dict[str, Any] = {
        "what": "linearising RoBERTa-base, query and value of the last layer, by one and by two processes",
        "machine": machine(options.threads),
        "repeats": options.repeats,
        "prompts": options.examples,
        "seconds_and_processor_seconds": times,
    }
    report({**result, "claims": claims(result)}, options.output)


if __name__ == "__main__":
    main()
