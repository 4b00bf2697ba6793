"""Linearising RoBERTa-base, against its plain forward pass and against other ways to the same Jacobian.

32 prompts with two outputs: (a) of 40 tokens, as in `linearize_roberta.py`, query and value of the last
layer; (b) the same prompts, all 24 query and value matrices; (c) of natural length, as in
`paper_protocol.py`, query and value of the last layer. The plain pass is the whole encoder with the head at
the mask, in the same batches as ours. The peers are in `jacobian_peers.py`: the paper's published way,
`torch.func.jacrev` used better than that, Opacus with a forward and backward pass per output, as its
interface has it, curvlinops prompt by prompt and, in (a) and (c), for all outputs at once. Ours is what `fit`
does for cross-entropy, which sees nothing but the contrast of the two outputs: one backward pass, down to the
first matrix. The peers give the Jacobian of both outputs, as they are asked to where nobody knows that. Some
ways stand beside them and count for no target: ours with both outputs, `jacrev` prompt by prompt, Opacus with
its records put back from outside between the outputs, and Opacus when it is told the contrast, so that it
makes one pass of each kind as well. All run in turn in one process, with one thread, and ratios are those of
processor seconds, run by run, as a busy machine disturbs them less. Ours counts everything: encoding,
identity, proof, the passes, compression. Every Jacobian is held against ours of the same outputs, outside the
time.

In (b) the published way would take the better part of an hour. Each of its 24 matrices costs a backward pass
that is longer by one layer the deeper its layer lies, so the mean of two neighbours in the middle, query of
layer 5 and value of layer 6, is that of all, and stands for 12 such pairs. The ratio is marked as scaled.

In (c) padding counts. The published way has all prompts in one batch, which is as long as its longest; ours,
the plain pass and Opacus have the batches that `linearize` makes, and who goes prompt by prompt pads nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jacobian_peers as peers
import torch
from jacobian_cases import CASES, PUBLISHED, WORK, Peer
from linearize_roberta import EXAMPLES, TOKENS, build, plain_forward
from outcome import Claim, claim, machine, report, seconds, spread
from paper_protocol import natural, prompts

from tangentlora import Network, linearize
from tangentlora.models.network import Batch
from tangentlora.tangent.centred import helmert
from tangentlora.tangent.jacobian import Jacobian, in_memory
from tangentlora.tangent.tangent import Tangent

AGREEMENT = 1e-4
TARGETS = {"forward": 1.10, "published": 20.0, "others": 2.0}
PLAIN = "plain forward"
OF_ALL = "ours with both outputs"


def worst_error(
    ours: Jacobian, found: Sequence[tuple[Batch, peers.Dense]], along: int, own_name: dict[str, str]
) -> float:
    """Return the largest relative difference of a layer's Jacobian, over what was found batch by batch.

    Ours is made dense one example and layer at a time: that takes m·n numbers for each row.
    """
    worst = 0.0
    for name in found[0][1]:
        layer, apart, whole = ours.only([own_name[name]]), 0.0, 0.0
        for batch, theirs in found:
            blocks = theirs[name]
            for place, i in enumerate(batch.index):
                own = layer.select([i]).dense()[own_name[name]][0]
                other = blocks[place] if along == 0 else torch.stack([block[place] for block in blocks])
                apart += float((other - own).norm() ** 2)
                whole += float(own.norm() ** 2)
        worst = max(worst, (apart / whole) ** 0.5)
    return worst


def measure(network: Network, inputs: list[str], case: str, repeats: int) -> dict[str, Any]:
    """Time the plain pass, ours and every peer in turn; return the seconds of each run, and the errors."""
    targets = network.targets(layers="all" if case == "all" else "last")
    reader: Any = network.reader
    mask_id = reader.tokens.tokenizer.mask_token_id
    model = peers.Outputs(reader.encoder, reader.head, mask_id).eval()
    module: Any = network.module
    vocabulary = peers.Outputs(reader.encoder, module.lm_head, mask_id, reader.words).eval()
    weight_name = {id(weight): name for name, weight in model.named_parameters()}
    name_of = {t.name: weight_name[id(network.module.get_submodule(t.module).weight)] for t in targets}
    own_name = {name: own for own, name in name_of.items()}
    C = helmert(len(reader.words))
    contrast = peers.Outputs(reader.encoder, reader.head, mask_id, C=C.float()).eval()

    def own(centred: bool) -> Tangent:
        return linearize(network, inputs, targets, batch_size=EXAMPLES, centred=centred)

    ours = in_memory(own(False).jacobian, "comparing")
    seen = in_memory(own(True).jacobian.combine_outputs(C), "comparing")
    times: dict[str, list[float]] = {}
    used: dict[str, list[float]] = {}
    errors: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object], scale: int = 1) -> None:
        before = time.process_time()
        times.setdefault(name, []).append(scale * seconds(work))
        used.setdefault(name, []).append(scale * (time.process_time() - before))

    for turn in range(repeats):
        timed(PLAIN, lambda: plain_forward(network, inputs))
        timed("ours", lambda: own(True))
        timed(OF_ALL, lambda: own(False))
        for peer in CASES[case]:
            found: list[tuple[Batch, peers.Dense]] = []

            def work(peer: Peer = peer, found: list[tuple[Batch, peers.Dense]] = found) -> None:
                whole = vocabulary if peer.vocabulary else contrast if peer.contrasts else model
                names = [name_of[t.name] for t in peer.part(targets)]
                for batch in peer.batches(network, inputs):
                    found.append((batch, peer.run(whole, batch.tensors, names)))

            timed(peer.name, work, peer.scale)
            if turn == 0:
                errors[peer.name] = worst_error(seen if peer.contrasts else ours, found, peer.along, own_name)
                assert errors[peer.name] < AGREEMENT, (case, peer.name, errors)
    return {
        "seconds": times,
        "processor_seconds": used,
        "scaled": {peer.name: peer.scale for peer in CASES[case] if peer.scale > 1},
        "beside": [OF_ALL, *(peer.name for peer in CASES[case] if not peer.counts)],
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
        asked = None if case == "all" else TARGETS["forward"]
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
    given, long = build(options.threads), (natural(options.threads), prompts(EXAMPLES))
    result: dict[str, Any] = {
        "what": f"linearise RoBERTa-base, {EXAMPLES} prompts of {TOKENS} tokens or natural length, K = 2",
        "machine": machine(options.threads),
        "repeats": options.repeats,
        "cases": {
            case: measure(*(long if case == "natural" else given), case, options.repeats)
            for case in options.cases
        },
    }
    report({**result, "claims": claims(result)}, options.output)


if __name__ == "__main__":
    main()
