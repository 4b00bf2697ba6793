"""One epoch of the paper's gradient descent on LoRA factors, against the published loop.

RoBERTa-base from its configuration, query and value of the last layer, 32 prompts of 40 tokens, rank 8, the
published rate. The peer is `published_loop.py`: two passes of the network and contractions with the dense
Jacobian in every step. Its pass is our plain one, whole encoder and head at the mask only, and its prompts
are short, which both flatter it; its tests on held-out examples are left out. Ours is a whole run as a user
starts it, divided by its epochs: the reduction to the span, the steps, the logged epochs and their duality
gaps. Both have linearised before, and neither counts it. The two run in turn, and must agree on the losses.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from linearize_roberta import build, plain_forward
from outcome import claim, machine, report, seconds, spread
from published_loop import PublishedLoop

from tangentlora import CrossEntropy, Descent, Problem, linearize
from tangentlora.solvers.starts import paper_start

LAM, RATE, RANK, SEED = 0.01, 0.0005, 8, 0
NEVER = -1.0
"""A tolerance that no duality gap is within: every epoch is run."""
TARGET = 2000


def main() -> None:
    """Run the benchmark, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1000, help="of our run")
    parser.add_argument("--steps", type=int, default=2, help="of the published loop in each repeat")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    network, inputs = build(options.threads)
    tangent = linearize(network, inputs)
    n = len(inputs)
    y = torch.arange(n) % 2
    peer = PublishedLoop(lambda: plain_forward(network, inputs), tangent.jacobian.dense(), y, LAM)
    ours = Descent(
        rank=RANK, epochs=options.epochs, learning_rate=n * RATE, momentum=0.0, tolerance=NEVER, seed=SEED
    )

    def posed() -> Problem:
        return Problem(tangent.jacobian, tangent.f0, y, CrossEntropy(), LAM)

    start = paper_start(posed(), RANK, SEED)
    # at λ = 0, since there no penalty acts
    alike = replace(ours, epochs=options.steps).solve(posed().with_lam(0.0)).trace
    losses = replace(peer, lam=0.0).train(start, RATE, options.steps)[1]
    for (epoch, loss), theirs in zip(alike, losses, strict=False):
        assert abs(loss - theirs) < 1e-5, f"epoch {epoch}: the two loops differ, {loss} and {theirs}"

    published, run = [], []
    for _ in range(options.repeats):
        published.append(seconds(lambda: peer.train(start, RATE, options.steps)) / options.steps)
        run.append(seconds(lambda: ours.solve(posed())) / options.epochs)
    ratio = spread([theirs / mine for theirs, mine in zip(published, run, strict=True)])
    peer_name = "the published loop: two network passes and dense Jacobian products in every step"
    work = f"an epoch of gradient descent, rank {RANK}, N = {n}, RoBERTa-base, q and v of the last layer"
    result = {
        "what": f"{work}, against {peer_name}",
        "claims": [claim(work, peer_name, ratio, "at least", TARGET)],
        "machine": machine(options.threads),
        "repeats": options.repeats,
        "epochs": options.epochs,
        "steps_of_the_published_loop": options.steps,
        "seconds_median": {
            "published_step": statistics.median(published),
            "its_two_passes": 2 * seconds(lambda: plain_forward(network, inputs)),
            "our_epoch": statistics.median(run),
        },
        "dense_bytes": sum(block.nbytes for block in peer.dense.values()),
        "bytes": tangent.jacobian.nbytes,
    }
    report(result, options.output)


if __name__ == "__main__":
    main()
