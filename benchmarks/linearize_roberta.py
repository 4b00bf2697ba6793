"""Linearising a full-size RoBERTa-base on 32 prompts of 40 tokens, against its plain forward pass.

The network is built from its configuration with random weights (speed and exactness do not depend on
them), the tokenizer is trained on the bundled messages. The peer is the same network giving the same
outputs: the whole encoder, the head at the mask only; beside it stands our own forward pass, which takes
only the mask's position through what follows the last attention. They are run in turn and ratios are taken
run by run. Errors are those of the float32 operator against the dense float32 Jacobian that autograd gives,
one backward pass per example and output.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from outcome import Claim, claim, machine, report, seconds, spread
from torch import Tensor

from tangentlora import MaskPrompt, Network, linearize, load_splits, network_from_module
from tangentlora.models.prompt import PromptReader
from tangentlora.tangent.tangent import Tangent

EXAMPLES, TOKENS, SEED = 32, 40, 0
TARGET = 1.10


def build(threads: int) -> tuple[Network, list[str]]:
    """Return the network and 32 messages that fill exactly 40 tokens with the template."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    splits = load_splits("support")
    texts = [*splits.train.inputs, *(splits.test.inputs if splits.test else ())]
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        [f" {text} great terrible" for text in texts] * 4, 4000, special_tokens=special
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>",
        unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip
    module = RobertaForMaskedLM(
        RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    )
    readout = MaskPrompt("{text} It was {mask}.", ("terrible", "great"), max_length=TOKENS)
    network = network_from_module(module, fast, readout, name="roberta-base from its configuration")
    long = " ".join(sorted(texts, key=len)[-EXAMPLES:])
    inputs = [f"{text} {long[i * 50 :]}" for i, text in enumerate(sorted(texts, key=len)[-EXAMPLES:])]
    lengths = {len(features["input_ids"]) for features in network.reader.encode(inputs)}
    assert lengths == {TOKENS}, lengths
    return network, inputs


def dense_by_autograd(network: Network, inputs: list[str]) -> dict[str, Tensor]:
    """Return every J_ik,t, (N,K,m,n), by one backward pass to the weights per example and output."""
    targets = network.targets()
    weights = [target.weight(network.module).requires_grad_(True) for target in targets]
    blocks: dict[str, list[Tensor]] = {target.name: [] for target in targets}
    features = network.reader.encode(inputs)
    order: list[int] = []
    for batch in network.batches(features, EXAMPLES):
        outputs = network.outputs(batch)
        order += batch.index
        for i in range(len(outputs)):
            rows = [torch.autograd.grad(z, weights, retain_graph=True) for z in outputs[i]]
            for t, target in enumerate(targets):
                blocks[target.name].append(torch.stack([row[t] for row in rows]))
    for weight in weights:
        weight.requires_grad_(False)
    position = torch.argsort(torch.tensor(order))
    return {name: torch.stack(rows)[position] for name, rows in blocks.items()}


def errors(tangent: Tangent, dense: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative errors of forward and adjoint in float32, for random low-rank δ and random a."""
    generator = torch.Generator().manual_seed(SEED)
    jacobian, worst = tangent.jacobian, {"forward": 0.0, "adjoint": 0.0, "blocks": 0.0}
    ours = jacobian.dense()
    for name, blocks in dense.items():
        rows = (ours[name] - blocks).double().flatten(2).norm(dim=2) / blocks.double().flatten(2).norm(dim=2)
        worst["blocks"] = max(worst["blocks"], float(rows.max()))
    for _ in range(5):
        factors = {
            name: (torch.randn(m, 8, generator=generator), torch.randn(n, 8, generator=generator))
            for name, (m, n) in jacobian.shapes.items()
        }
        delta = {name: u @ v.T for name, (u, v) in factors.items()}
        expected = sum(
            torch.einsum("ikmn,mn->ik", dense[name].double(), delta[name].double()) for name in dense
        )
        for z in (jacobian.forward(delta), jacobian.at(factors).forward()):
            worst["forward"] = max(worst["forward"], float((z - expected).norm() / expected.norm()))
        a = torch.randn(jacobian.n_examples, jacobian.n_outputs, generator=generator)
        adjoint = jacobian.adjoint(a)
        for name, blocks in dense.items():
            M = torch.einsum("ik,ikmn->mn", a.double(), blocks.double())
            worst["adjoint"] = max(worst["adjoint"], float((adjoint[name] - M).norm() / M.norm()))
    return worst


@torch.no_grad()
def plain_forward(network: Network, inputs: list[str]) -> Tensor:
    """Return the outputs, (N,K), by the whole encoder and the head at the mask."""
    reader = network.reader
    assert isinstance(reader, PromptReader)
    whole = Network(network.name, network.module, replace(reader, after_attention=None), network.fingerprint)
    return whole.predict(inputs, EXAMPLES)


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return the rows of docs/benchmarks.md."""
    work = "linearise RoBERTa-base, query and value of the last layer"
    plain, own = result["ratio_to_plain_forward"], result["ratio_to_our_forward"]
    return [
        claim(work, "the plain forward pass: our time over its", plain, "at most", TARGET),
        claim(work, "our own forward pass, shorter at its end: our time over its", own, "at most", None),
    ]


def main() -> None:
    """Run the benchmark, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    network, inputs = build(options.threads)
    tangent = linearize(network, inputs, batch_size=EXAMPLES)
    assert torch.allclose(plain_forward(network, inputs), tangent.f0, atol=1e-4)
    runs = [
        (
            seconds(lambda: linearize(network, inputs, batch_size=EXAMPLES)),
            seconds(lambda: plain_forward(network, inputs)),
            seconds(lambda: network.predict(inputs)),
        )
        for _ in range(options.repeats)
    ]
    dense_bytes = 4 * tangent.f0.numel() * sum(m * n for m, n in tangent.jacobian.shapes.values())
    result = {
        "what": "linearise RoBERTa-base, 32 prompts of 40 tokens, query and value of the last layer",
        "machine": machine(options.threads),
        "repeats": options.repeats,
        "ratio_to_plain_forward": spread([ours / plain for ours, plain, _ in runs]),
        "ratio_to_our_forward": spread([ours / forward for ours, _, forward in runs]),
        "plain_forward_seconds_median": statistics.median(plain for _, plain, _ in runs),
        "rows_per_example": {
            name: len(rows.x) / tangent.jacobian.n_examples for name, rows in tangent.jacobian.layers.items()
        },
        "bytes": tangent.jacobian.nbytes,
        "dense_bytes": dense_bytes,
        "times_smaller": dense_bytes / tangent.jacobian.nbytes,
        "relative_errors_float32": errors(tangent, dense_by_autograd(network, inputs)),
    }
    report({**result, "claims": claims(result)}, options.output)


if __name__ == "__main__":
    main()
