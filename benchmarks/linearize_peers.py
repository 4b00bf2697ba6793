"""Linearising RoBERTa-base, against its plain forward pass and against other ways to the same Jacobian.

32 prompts of 40 tokens with two outputs, as in `linearize_roberta.py`; (a) query and value of the last layer,
(b) all 24 query and value matrices. The plain pass is the whole encoder with the head at the mask. The peers
are in `jacobian_peers.py`: the paper's published way, `torch.func.jacrev` used better than that, Opacus with
a forward and backward pass per output, as its interface has it, curvlinops prompt by prompt and, in (a), for
all outputs at once. Two stand beside them and count for no target: `jacrev` prompt by prompt, and Opacus with
its records put back from outside between the outputs. All run in turn in one process, with one thread, and
ratios are those of processor seconds, run by run, as a busy machine disturbs them less. Ours counts
everything: encoding, identity, proof, the passes, compression. Every Jacobian is held against ours, outside
the time.

In (b) the published way would take the better part of an hour. Each of its 24 matrices costs a backward pass
that is longer by one layer the deeper its layer lies, so the mean of two neighbours in the middle, query of
layer 5 and value of layer 6, is that of all, and stands for 12 such pairs. The ratio is marked as scaled.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jacobian_peers as peers
import torch
from linearize_roberta import EXAMPLES, TOKENS, build, plain_forward
from outcome import Claim, claim, machine, report, seconds, spread

from tangentlora import Network, linearize
from tangentlora.models.targets import Target
from tangentlora.tangent.jacobian import Jacobian

AGREEMENT = 1e-4
TARGETS = {"forward": 1.10, "published": 20.0, "others": 2.0}
PLAIN = "plain forward"


@dataclass(frozen=True)
class Peer:
    """A way to the Jacobian; it does the `part` of the targets, and `scale` makes up for the rest.

    `along` is the axis of (N,K,m,n) that its lists run over; `counts` says that it counts for a target,
    and `vocabulary` that it takes the head for the whole of it.
    """

    name: str
    run: Callable[..., peers.Dense]
    part: Callable[[Sequence[Target]], Sequence[Target]] = lambda targets: targets
    scale: int = 1
    along: int = 0
    counts: bool = True
    vocabulary: bool = False


def middle(targets: Sequence[Target]) -> Sequence[Target]:
    """Return a query and a value matrix of the two layers in the middle."""
    half = len(targets) // 2
    return [targets[half - 2], targets[half + 1]]


PUBLISHED = "the published code's jacrev"
OTHERS = (
    Peer("jacrev prompt by prompt", peers.by_example, counts=False),
    Peer("Opacus", peers.opacus, along=1),
    Peer(
        "Opacus, its records put back from outside", partial(peers.opacus, again=True), along=1, counts=False
    ),
    Peer("curvlinops prompt by prompt", peers.curvlinops),
)
CASES = {
    "last": (
        Peer(PUBLISHED, peers.published, vocabulary=True),
        *OTHERS,
        Peer("curvlinops at once", peers.curvlinops_batch),
    ),
    "all": (Peer(PUBLISHED, peers.published, middle, 12, vocabulary=True), *OTHERS),
}
WORK = {"last": "query and value of the last layer", "all": "all 24 query and value matrices"}


def worst_error(ours: Jacobian, theirs: peers.Dense, along: int, own_name: dict[str, str]) -> float:
    """Return the largest relative difference of a layer's Jacobian.

    Ours is made dense one example and layer at a time: that takes m·n numbers for each row.
    """
    worst = 0.0
    for name, blocks in theirs.items():
        layer, apart, whole = ours.only([own_name[name]]), 0.0, 0.0
        for i in range(ours.n_examples):
            own = layer.select([i]).dense()[own_name[name]][0]
            other = blocks[i] if along == 0 else torch.stack([block[i] for block in blocks])
            apart += float((other - own).norm() ** 2)
            whole += float(own.norm() ** 2)
        worst = max(worst, (apart / whole) ** 0.5)
    return worst


def measure(network: Network, inputs: list[str], case: str, repeats: int) -> dict[str, Any]:
    """Time the plain pass, ours and every peer in turn; return the seconds of each run, and the errors."""
    targets = network.targets(layers=case)
    reader: Any = network.reader
    mask_id = reader.tokens.tokenizer.mask_token_id
    model = peers.Outputs(reader.encoder, reader.head, mask_id).eval()
    module: Any = network.module
    vocabulary = peers.Outputs(reader.encoder, module.lm_head, mask_id, reader.words).eval()
    weight_name = {id(weight): name for name, weight in model.named_parameters()}
    name_of = {t.name: weight_name[id(network.module.get_submodule(t.module).weight)] for t in targets}
    own_name = {name: own for own, name in name_of.items()}
    ours = linearize(network, inputs, targets, batch_size=EXAMPLES).jacobian
    times: dict[str, list[float]] = {}
    used: dict[str, list[float]] = {}
    errors: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object], scale: int = 1) -> None:
        before = time.process_time()
        times.setdefault(name, []).append(scale * seconds(work))
        used.setdefault(name, []).append(scale * (time.process_time() - before))

    for turn in range(repeats):
        timed(PLAIN, lambda: plain_forward(network, inputs))
        timed("ours", lambda: linearize(network, inputs, targets, batch_size=EXAMPLES))
        for peer in CASES[case]:
            found: list[peers.Dense] = []

            def work(peer: Peer = peer, found: list[peers.Dense] = found) -> None:
                batch = next(network.batches(network.reader.encode(inputs), EXAMPLES)).tensors
                whole = vocabulary if peer.vocabulary else model
                found.append(peer.run(whole, batch, [name_of[t.name] for t in peer.part(targets)]))

            timed(peer.name, work, peer.scale)
            if turn == 0:
                errors[peer.name] = worst_error(ours, found[0], peer.along, own_name)
                assert errors[peer.name] < AGREEMENT, (case, peer.name, errors)
    return {
        "seconds": times,
        "processor_seconds": used,
        "scaled": {peer.name: peer.scale for peer in CASES[case] if peer.scale > 1},
        "beside": [peer.name for peer in CASES[case] if not peer.counts],
        "relative_error_to_ours": errors,
    }


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return the rows of docs/benchmarks.md, from the processor seconds of every run."""
    rows = []
    for case, found in result["cases"].items():
        times, work = found["processor_seconds"], f"linearise RoBERTa-base, {WORK[case]}"
        ours, beside = times["ours"], {PLAIN, "ours", PUBLISHED, *found["beside"]}
        others = [name for name in times if name not in beside]
        quickest = min(others, key=lambda name, times=times: statistics.median(times[name]))

        def over(peer: str, times: dict[str, list[float]] = times, ours: list[float] = ours) -> Any:
            return spread([theirs / mine for theirs, mine in zip(times[peer], ours, strict=True)])

        plain = spread([mine / theirs for mine, theirs in zip(ours, times[PLAIN], strict=True)])
        asked = TARGETS["forward"] if case == "last" else None
        rows.append(claim(work, "the plain forward pass: our time over its", plain, "at most", asked))
        scaled = " (scaled from 2 of the 24 matrices)" if PUBLISHED in found["scaled"] else ""
        rows.append(claim(work, f"{PUBLISHED}{scaled}", over(PUBLISHED), "at least", TARGETS["published"]))
        name = f"{quickest}, the faster of Opacus and curvlinops"
        rows.append(claim(work, name, over(quickest), "at least", TARGETS["others"]))
        rest = [*others, *found["beside"]]
        rows += [claim(work, peer, over(peer), "at least", None) for peer in rest if peer != quickest]
    return rows


def main() -> None:
    """Run the benchmark, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    network, inputs = build(options.threads)
    result: dict[str, Any] = {
        "what": f"linearise RoBERTa-base, {EXAMPLES} prompts of {TOKENS} tokens, two outputs",
        "machine": machine(options.threads),
        "repeats": options.repeats,
        "cases": {case: measure(network, inputs, case, options.repeats) for case in options.cases},
    }
    report({**result, "claims": claims(result)}, options.output)


if __name__ == "__main__":
    main()
