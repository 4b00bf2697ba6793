"""What the store of a RoBERTa-base's tangent takes on disk, against the dense Jacobian in float32.

The tangent is centred, as `fit` makes it for cross-entropy; the dense Jacobian is that of both outputs.
Prompts are of natural length, as in `paper_protocol.py`. The last layer's query and value matrices are
stored for all 1,032 prompts of the paper's protocol, and all 24 for some of them, drawn at random; what all
would take is then predicted from the bytes per token, for prompts of whatever length. Bytes are those of
every file in the tangent's folder. Nothing is timed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linearize_roberta import SEED
from outcome import Claim, claim, machine, report
from paper_protocol import TEST, N, natural, prompts

from tangentlora import Network, linearize

TARGETS = {"last": 100.0, "all": 10.0}
WORK = {"last": "query and value of the last layer", "all": "all 24 query and value matrices"}


def stored(network: Network, inputs: Sequence[str], layers: str) -> dict[str, Any]:
    """Linearise in a store of its own; return its bytes beside those of the dense Jacobian."""
    targets = network.targets(layers=layers)
    with tempfile.TemporaryDirectory() as folder:
        shown = sys.stderr.isatty()
        tangent = linearize(network, inputs, targets, centred=True, store=Path(folder), progress=shown)
        files = [file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()]
    counts = [len(features["input_ids"]) for features in network.reader.encode(inputs)]
    return {
        "matrices": len(targets),
        "prompts": len(inputs),
        "tokens": sum(counts),
        "longest": max(counts),
        "median_tokens": statistics.median(counts),
        "bytes": sum(files),
        "dense_bytes": 4 * tangent.f0.numel() * sum(m * n for m, n in (t.shape for t in targets)),
    }


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return the rows of docs/benchmarks.md: dense bytes over stored bytes."""
    rows = []
    for layers, found in result["stored"].items():
        ratio = dict.fromkeys(("min", "median", "max"), found["dense_bytes"] / found["bytes"])
        work = f"store the tangent of RoBERTa-base on {found['prompts']:,} prompts, {WORK[layers]}"
        peer = "the dense Jacobian in float32: its bytes over those on disk"
        rows.append(claim(work, peer, ratio, "at least", TARGETS[layers]))
    return rows


def main() -> None:
    """Run the benchmark, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="of no use: the same bytes come every time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--examples", type=int, default=N + TEST, help="for the last layer's matrices")
    parser.add_argument("--all-layers", type=int, default=128, help="examples for all 24 matrices")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    network = natural(options.threads)
    inputs = prompts(options.examples)
    drawn = random.Random(SEED).sample(inputs, min(options.all_layers, len(inputs)))
    found = {"last": stored(network, inputs, "last"), "all": stored(network, drawn, "all")}
    last, some = found["last"], found["all"]
    predicted = some["bytes"] / some["tokens"] * last["tokens"]
    dense = some["dense_bytes"] / some["prompts"] * last["prompts"]
    result: dict[str, Any] = {
        "what": "bytes of the stored tangent of RoBERTa-base, prompts of natural length",
        "machine": machine(options.threads),
        "repeats": options.repeats,
        "stored": found,
        "predicted_for_all_layers": {
            "prompts": last["prompts"],
            "bytes": round(predicted),
            "dense_bytes": round(dense),
            "times_smaller": dense / predicted,
        },
    }
    report({**result, "claims": claims(result)}, options.output)


if __name__ == "__main__":
    main()
