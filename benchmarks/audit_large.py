"""Auditing a LoRA adapter of a network of 1.5 billion parameters, against plain forward and backward passes.

The network is a Qwen2 built from its configuration in bfloat16 with random weights, the adapter PEFT's with
random factors on q and v of all layers: time and memory depend on neither, and the verdict means nothing.
The data are completions of natural texts. The peer is the same folder as a live PEFT model in evaluation
mode, in the same batches: one forward and one backward pass with gradients of the LoRA factors only, and
the vocabulary seen at the completions' tokens only, as ours does (a trainer's own pass makes the logits of
every position, and takes longer). Each side runs in a process of its own, in turn, after a first pass over
one short example, on one thread, so that nothing is spent on waiting for others. Ratios are taken pair by
pair, of wall-clock time and of processor time, which a busy machine disturbs less. The audit's time runs
from the open adapter to the verdict; loading stands beside it. Memory is the process's peak resident set,
libraries and loading included.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from outcome import Claim, claim, machine, report, spread

from tangentlora import load_splits
from tangentlora.models.completion import Completion
from tangentlora.problem.losses import Likelihood

EXAMPLES, TOKENS, BATCH, RANK, SEED = 16, 48, 8, 16, 0
WEIGHT_DECAY = 1e-4


def build(folder: Path) -> None:
    """Write the network with its tokenizer, the adapter as PEFT saves it, and the completions."""
    from peft import LoraConfig, get_peft_model
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    torch.manual_seed(SEED)
    splits = load_splits("support")
    texts = [*splits.train.inputs, *(splits.test.inputs if splits.test else ())]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, 4000, special_tokens=["<|endoftext|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>")
    config = Qwen2Config(
        num_hidden_layers=28, hidden_size=1536, num_attention_heads=12, num_key_value_heads=2,
        intermediate_size=8960, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    module.save_pretrained(folder / "base")
    fast.save_pretrained(folder / "base")
    module.name_or_path = str(folder / "base")
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(module, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)

    ids = fast(" ".join(texts))["input_ids"]
    rows = [(ids[i : i + TOKENS // 2], ids[i + TOKENS // 2 : i + TOKENS]) for i in range(0, 10**4, TOKENS)]
    (folder / "data").mkdir()
    for part, chosen in (("train", rows[:EXAMPLES]), ("test", rows[EXAMPLES : EXAMPLES + 2])):
        with (folder / "data" / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["prompt", "completion"])
            writer.writerows([fast.decode(text) for text in row] for row in chosen)


def peer(folder: Path) -> dict[str, Any]:
    """Pass forward and backward over all examples as training with PEFT does."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    # The reader's hook on the head, which PEFT leaves where it is, keeps the vocabulary small.
    reader = Completion(max_length=2 * TOKENS).bind(base, tokenizer)
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).eval()
    train = load_splits(str(folder / "data")).train.inputs
    features = reader.encode(train)
    order = sorted(range(len(features)), key=lambda i: -len(features[i]["input_ids"]))

    def passes(examples: list[int]) -> float:
        total = 0.0
        for start in range(0, len(examples), BATCH):
            z = reader.outputs(reader.collate([features[i] for i in examples[start : start + BATCH]]))
            loss = -z.sum() / len(features)
            loss.backward()
            total += loss.item()
        return total

    passes(order[-1:])
    model.zero_grad()
    start, used = time.perf_counter(), time.process_time()
    loss = passes(order)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(gradients) == 4 * 28, len(gradients)
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    return {
        "seconds": seconds,
        "processor_seconds": used,
        "loss": loss,
        "parameters": sum(p.numel() for p in base.parameters() if not p.requires_grad),
        "tokens": sum(len(f["input_ids"]) for f in features),
        "scored_tokens": sum(int(f["completion"].sum()) for f in features),
    }


def audit(folder: Path) -> dict[str, Any]:
    """Open the adapter on its network and data, and audit it."""
    from tangentlora.studies.audit import audit_opened
    from tangentlora.studies.opened import open_adapter
    from tangentlora.tangent.gradient import weight_gradients

    given = {"dtype": "bfloat16", "data": str(folder / "data"), "max_length": 2 * TOKENS}
    start = time.perf_counter()
    with open_adapter(folder / "adapter", given) as opened:
        loading = time.perf_counter() - start
        warm = opened.splits.train.inputs[:1]
        weight_gradients(opened.network, warm, torch.zeros(1, dtype=torch.long), opened.targets, Likelihood())
        start, used = time.perf_counter(), time.process_time()
        found = audit_opened(opened, weight_decay=WEIGHT_DECAY, local=False, batch_size=BATCH)
        seconds, used = time.perf_counter() - start, time.process_time() - used
    return {
        "seconds": seconds,
        "processor_seconds": used,
        "loading_seconds": loading,
        "loss": found.after.loss,
        "verdict": found.verdict.name,
        "line_search_passes": sum(fall.evaluations for fall in (found.remaining, found.gain) if fall),
    }


def in_turn(folder: Path, part: str, threads: int) -> dict[str, Any]:
    """Run one side in a process of its own; its peak memory is its own too."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--threads", str(threads)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return the rows of docs/benchmarks.md."""
    work = (
        f"audit a LoRA adapter on q and v of a Qwen2 of {result['parameters'] / 1e9:.1f} billion parameters"
    )
    peer = "one plain forward and backward pass: our"
    least = result["peer_peak_gb"]["min"]
    memory = {key: gb / least for key, gb in result["audit_peak_gb"].items()}
    time, used = result["ratio_to_forward_and_backward"], result["ratio_in_processor_time"]
    return [
        claim(work, f"{peer} time over its", time, "at most", 4.0),
        claim(work, f"{peer} processor time over its", used, "at most", None),
        claim(work, f"{peer} peak memory over its least", memory, "at most", None),
    ]


def main() -> None:
    """Run the benchmark, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--folder", type=Path, help="keep the 3 GB of the network here, and find them again")
    parser.add_argument("--part", choices=["build", "peer", "audit"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.part == "build":
        build(options.folder)
        print("{}")
        return
    if options.part:
        result = {"peer": peer, "audit": audit}[options.part](options.folder)
        result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "data" / "train.csv").exists():
            in_turn(folder, "build", options.threads)
        pairs = [
            (in_turn(folder, "peer", options.threads), in_turn(folder, "audit", options.threads))
            for _ in range(options.repeats)
        ]
    plain, ours = pairs[-1]
    assert abs(ours["loss"] / plain["loss"] - 1) < 1e-3, "the two sides differ in what they compute"

    def over_peer(key: str, by: str) -> dict[str, float]:
        return spread([ours[key] / plain[by] for plain, ours in pairs])

    result = {
        "what": f"audit a LoRA adapter of rank {RANK} on q and v of all 28 layers of a Qwen2 in bfloat16",
        **{key: plain[key] for key in ("parameters", "tokens", "scored_tokens")},
        "examples": EXAMPLES,
        "batch_size": BATCH,
        "machine": machine(options.threads),
        "repeats": options.repeats,
        "ratio_to_forward_and_backward": over_peer("seconds", "seconds"),
        "ratio_in_processor_time": over_peer("processor_seconds", "processor_seconds"),
        "loading_to_forward_and_backward": over_peer("loading_seconds", "seconds"),
        "audit_peak_gb": spread([ours["peak_gb"] for _, ours in pairs]),
        "peer_peak_gb": spread([plain["peak_gb"] for plain, _ in pairs]),
        "forward_passes": 1 + ours["line_search_passes"],
        "losses": {"peer": plain["loss"], "audit": ours["loss"]},
    }
    report({**result, "claims": claims(result)}, options.output)


if __name__ == "__main__":
    main()
