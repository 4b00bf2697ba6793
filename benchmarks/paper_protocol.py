"""The paper's language protocol on a full-size RoBERTa-base, against the plain forward passes over its data.

32 prompts with 2 labels are trained on and 1,000 are tested on at every logged epoch, by SGD at each of the
paper's ranks and by full fine-tuning (proximal steps), 1,000 epochs each, none of which may end early. The
network is built from its configuration with random weights and the tokenizer is trained on the bundled
messages: the time depends on neither, and the accuracies mean nothing. λ and the learning rate are the
published ones; 0.0005 for the sum over 32 examples is 0.016 for their mean. The peer is one plain forward
pass of the whole encoder, with the head at the mask only, over each of the 1,032 prompts. Both sides run in
turn and ratios are taken run by run; ours counts linearising, training, the duality gaps and the tests.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from linearize_roberta import build, plain_forward
from outcome import Claim, claim, machine, report, seconds, spread
from torch import Tensor

from tangentlora import CrossEntropy, Descent, Network, Problem, Proximal, linearize, load_splits
from tangentlora.blocks import Factors
from tangentlora.models.prompt import PromptReader
from tangentlora.solvers.solution import Monitor, Record, Solver
from tangentlora.tangent.tangent import Tangent

N, TEST, EPOCHS, SEED = 32, 1000, 1000, 0
LAM, RATE = 0.01, 0.016
RANKS, BONUS = (1, 2, 4, 8, 16, 32), 64
NEVER = -1.0
"""A tolerance that no duality gap is within: every epoch is run."""


def natural(threads: int) -> Network:
    """Return the network, which reads prompts of natural length, up to 128 tokens."""
    network, _ = build(threads)
    assert isinstance(network.reader, PromptReader)
    tokens = replace(network.reader.tokens, max_length=128)
    return replace(network, reader=replace(network.reader, tokens=tokens))


def prompts(count: int) -> list[str]:
    """Return distinct texts of natural length: the bundled messages, then pairs of the shorter ones."""
    splits = load_splits("support")
    single = [*splits.train.inputs, *(splits.test.inputs if splits.test else ())]
    short = sorted(single, key=len)[: len(single) * 2 // 3]
    texts = dict.fromkeys(single)
    draw = random.Random(SEED)
    while len(texts) < count:
        texts[" ".join(draw.sample(short, 2))] = None
    chosen = list(texts)
    draw.shuffle(chosen)
    return chosen[:count]


@dataclass
class Timing:
    """Seconds of one repeat; a run's seconds include those of its tests, which also stand alone."""

    forward: float = 0.0
    linearise: float = 0.0
    runs: dict[str, float] = field(default_factory=dict)
    tests: float = 0.0

    def total(self, bonus: bool) -> float:
        """Return what our side took, with or without the rank that the paper does not train."""
        return self.linearise + sum(
            time for name, time in self.runs.items() if bonus or name != f"rank {BONUS}"
        )


def tester(tangent: Tangent, y: Tensor, timing: Timing) -> Monitor:
    """Return a monitor of accuracy and loss on held-out examples: contrasts of their outputs decide both."""
    loss = CrossEntropy()
    C = loss.contrasts(tangent.f0.shape[1]).float()
    jacobian, f0 = tangent.jacobian.combine_outputs(C), tangent.f0 @ C.T

    def monitor(_: Record, factors: Factors) -> dict[str, float]:
        start = time.perf_counter()
        single = {name: (u.float(), v.float()) for name, (u, v) in factors.items()}
        z = (f0 + jacobian.at(single).forward()) @ C
        measures = {
            "test_accuracy": float((z.argmax(1) == y).double().mean()),
            "test_loss": float(loss.value(z.double(), y).mean()),
        }
        timing.tests += time.perf_counter() - start
        return measures

    return monitor


def solvers() -> dict[str, Solver]:
    """Return full fine-tuning and LoRA at every rank."""
    runs: dict[str, Solver] = {"full": Proximal(epochs=EPOCHS, tolerance=NEVER)}
    for rank in (*RANKS, BONUS):
        runs[f"rank {rank}"] = Descent(
            rank=rank, epochs=EPOCHS, learning_rate=RATE, momentum=0.0, tolerance=NEVER
        )
    return runs


def protocol(network: Network, inputs: list[str], timing: Timing) -> dict[str, int]:
    """Linearise, then train and test every run; return the number of tested epochs of each."""
    start = time.perf_counter()
    train = linearize(network, inputs[:N], centred=True)
    test = linearize(network, inputs[N:], centred=True)
    timing.linearise = time.perf_counter() - start
    y = torch.arange(len(inputs)) % 2
    problem = Problem(train.jacobian, train.f0, y[:N], CrossEntropy(), LAM)
    monitor = tester(test, y[N:], timing)
    logged = {}
    for name, solver in solvers().items():
        start = time.perf_counter()
        solution = solver.solve(problem, monitor)
        timing.runs[name] = time.perf_counter() - start
        assert solution.epochs == EPOCHS, (name, solution.epochs, solution.status)
        assert [epoch for epoch, _ in solution.trace] == list(range(EPOCHS + 1)), name
        assert all("test_accuracy" in record.measures for record in solution.history), name
        logged[name] = len(solution.history)
    return logged


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return the rows of docs/benchmarks.md."""
    work = "the paper's language protocol on RoBERTa-base, all its ranks and full fine-tuning"
    peer = "the plain forward passes over its data: our time over theirs"
    return [
        claim(work, peer, result["total_to_forward"], "at most", None),
        claim(f"linearising in {work}", peer, result["linearise_to_forward"], "at most", None),
    ]


def main() -> None:
    """Run the benchmark, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--examples", type=int, default=N + TEST, help="fewer than 1,032 for trying it out")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    network = natural(options.threads)
    inputs = prompts(options.examples)
    lengths = sorted(len(features["input_ids"]) for features in network.reader.encode(inputs))
    warm = linearize(network, inputs[:N], centred=True)
    assert torch.allclose(plain_forward(network, inputs[:N]), warm.f0, atol=1e-4)
    problem = Problem(warm.jacobian, warm.f0, torch.arange(N) % 2, CrossEntropy(), LAM)
    for solver in (Descent(rank=1, epochs=3), Proximal(epochs=3)):  # imports and first calls
        solver.solve(problem)
    timings, logged = [], {}
    for _ in range(options.repeats):
        timing = Timing(forward=seconds(lambda: plain_forward(network, inputs)))
        logged = protocol(network, inputs, timing)
        timings.append(timing)

    def median(times: list[float]) -> float:
        return round(statistics.median(times), 3)

    result = {
        "what": f"RoBERTa-base, query and value of the last layer, {N} prompts trained on and "
        f"{len(inputs) - N} tested on: ranks {', '.join(map(str, RANKS))} and full fine-tuning, {EPOCHS} "
        f"epochs each; beside them rank {BONUS}",
        "machine": machine(options.threads),
        "repeats": options.repeats,
        "tokens": {
            "min": lengths[0],
            "median": statistics.median(lengths),
            "mean": round(statistics.mean(lengths), 1),
            "max": lengths[-1],
        },
        "epochs_run": dict.fromkeys(logged, EPOCHS),
        "tested_epochs": logged,
        "total_to_forward": spread([t.total(bonus=False) / t.forward for t in timings]),
        f"total_with_rank_{BONUS}_to_forward": spread([t.total(bonus=True) / t.forward for t in timings]),
        "linearise_to_forward": spread([t.linearise / t.forward for t in timings]),
        "train_and_test_to_forward": spread(
            [(t.total(bonus=False) - t.linearise) / t.forward for t in timings]
        ),
        "seconds_median": {
            "forward": median([t.forward for t in timings]),
            "linearise": median([t.linearise for t in timings]),
            "runs": {name: median([t.runs[name] for t in timings]) for name in logged},
            "tests_within_the_runs": median([t.tests for t in timings]),
        },
    }
    report({**result, "claims": claims(result)}, options.output)


if __name__ == "__main__":
    main()
