"""Predictions of bytes, rows and memory against the store, the rows and the allocations that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fake_network import examples_of, fake_network
from random_jacobians import random_jacobian
from tangentlora.errors import InputError
from tangentlora.models.network import Features, Network, length_of
from tangentlora.models.targets import Target
from tangentlora.problem.losses import CrossEntropy
from tangentlora.problem.objective import Problem
from tangentlora.tangent.band_products import find_bands
from tangentlora.tangent.capture import capture
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.linearize import linearize
from tangentlora.tangent.plan import (
    ProblemShape,
    bounded,
    padded_tokens,
    predicted_peak,
    rows_in_store,
)
from tangentlora.tangent.trial_run import measured
from tiny_networks import MASK_ID, NETWORKS

N = 160


def tiny(kind: str) -> Network:
    module, _, read = NETWORKS[kind]()
    return fake_network(module, read)


def texts(lengths: Sequence[int], kind: str) -> list[Features]:
    """Return random texts of these lengths with one mask each."""
    examples = []
    for length in lengths:
        ids = torch.randint(5, 64, (length,))
        if kind.endswith("-mlm"):
            ids[int(torch.randint(1, length, ()))] = MASK_ID
        examples.append({"input_ids": ids, "attention_mask": torch.ones(length, dtype=torch.long)})
    return examples


def examples(kind: str, n: int = N) -> list[Features]:
    """Return inputs for a tiny network, texts and waves of many lengths."""
    if kind == "vit":
        return [{"pixel_values": torch.randn(3, 16, 16)} for _ in range(n)]
    if kind == "wav2vec2":
        lengths = torch.randint(200, 900, (n,)).tolist()
        return [
            {"input_values": torch.randn(s), "attention_mask": torch.ones(s, dtype=torch.long)}
            for s in lengths
        ]
    return texts((4 + 40 * torch.rand(n) ** 2).int().tolist(), kind)


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("kind", ["bert", "roberta-mlm", "gpt2", "vit", "wav2vec2"])
def test_bytes_and_rows_are_predicted_from_a_few_examples(kind: str, layers: str, tmp_path: Path) -> None:
    network, inputs = tiny(kind), examples(kind)
    targets = network.targets(layers=layers)
    rates = measured(network, inputs, targets, batch_size=16)
    tangent = linearize(network, inputs, targets, batch_size=16, store=tmp_path)
    lengths = [length_of(example) for example in inputs]
    assert rates.measured
    assert rates.bytes_stored(lengths) == pytest.approx(size_on_disk(tmp_path), rel=0.1)
    found = {name: int(rows.counts.sum()) for name, rows in tangent.jacobian.layers.items()}
    assert rates.rows_of(lengths) == pytest.approx(found, rel=0.1)
    assert tangent.source is not None
    assert rows_in_store(tangent.source, targets) == found


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("kind", ["bert", "roberta-mlm", "gpt2"])
def test_bounds_hold_and_take_no_pass(kind: str, layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = tiny(kind), examples(kind, 64)
    targets = network.targets(layers=layers)
    lengths = [length_of(example) for example in inputs]
    tried = measured(network, inputs, targets, batch_size=16)
    monkeypatch.setattr(network.module, "forward", None)
    bound = bounded(network, targets, lengths, 3, batch_size=16)
    assert not bound.measured
    assert bound.duration(lengths, 16) is None
    assert bound.bytes_stored(lengths) >= tried.bytes_stored(lengths)
    assert bound.batch_bytes >= tried.batch_bytes
    assert all(bound.rows_of(lengths)[name] >= rows for name, rows in tried.rows_of(lengths).items())


def peak_of_allocations(network: Network, batch: Sequence[Features], targets: Sequence[Target]) -> int:
    """Return the most that is allocated while a batch is captured, by torch's own profiler."""
    tensors = network.batch(batch, tuple(range(len(batch))))
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
        kept = capture(network, tensors, targets)
    assert kept.x
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(torch.tensor([change for _, change in changes]).cumsum(0).max())


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit"])
def test_the_memory_of_a_batch_is_what_is_allocated(kind: str) -> None:
    network, inputs = tiny(kind), examples(kind)
    targets = network.targets(layers="all")
    longest = sorted(inputs, key=length_of, reverse=True)[:32]
    peak = peak_of_allocations(network, longest, targets)
    assert measured(network, inputs, targets, batch_size=32).batch_bytes == pytest.approx(peak, rel=0.4)


def test_padding_is_that_of_the_batches() -> None:
    network, inputs = tiny("bert"), examples("bert", 50)
    lengths = [length_of(example) for example in inputs]
    batches = network.batches(inputs, 8)
    assert padded_tokens(lengths, 8) == sum(batch.tensors["input_ids"].numel() for batch in batches)


def test_the_sample_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = tiny("bert"), examples("bert", 2000)
    seen: list[Tensor] = []
    forward = type(network.module).forward
    monkeypatch.setattr(
        type(network.module),
        "forward",
        lambda self, **inputs: seen.append(inputs["input_ids"]) or forward(self, **inputs),
    )
    measured(network, inputs, network.targets(), batch_size=32)
    total = padded_tokens([length_of(example) for example in inputs], 32)
    assert 0 < sum(ids.numel() for ids in seen) <= 0.02 * total


@pytest.mark.parametrize("seed", range(4))
def test_a_problem_of_the_predicted_shape_holds_as_many_bytes(seed: int) -> None:
    jacobian = random_jacobian(seed)
    n, k = jacobian.n_examples, max(2, jacobian.n_outputs)
    jacobian = jacobian.combine_outputs(torch.randn(k, jacobian.n_outputs))
    problem = Problem(jacobian, torch.randn(n, k), torch.arange(n) % k, CrossEntropy(), 0.1)
    layers = jacobian.layers.items()
    shape = ProblemShape(
        n, k, k - 1, {name: len(rows.x) for name, rows in layers}, {name: rows.shape for name, rows in layers}
    )
    held = sum(rows.x.nbytes + rows.g.nbytes for rows in problem.jacobian.layers.values())
    contrasted = sum(rows.g.nbytes for rows in problem.contrasted.jacobian.layers.values())
    assert shape.problem_bytes == held + contrasted
    assert shape.tangent_bytes == held // 2
    rows = shape.tangent_bytes + shape.problem_bytes
    assert predicted_peak(shape, process=100, solver=10) == rows + 110
    assert predicted_peak(shape, process=100, block=50) == 150
    assert predicted_peak(shape, block=10**9) == rows
    half = shape.share(2)
    assert half.problem_bytes <= shape.problem_bytes <= 2 * half.problem_bytes


def test_a_problem_of_rows_in_bands_holds_an_eighth_of_their_columns() -> None:
    g = torch.zeros(6, 8, 2, 8, 3)
    g.diagonal(dim1=1, dim2=3).copy_(torch.randn(6, 2, 3, 8))
    wide = LayerRows(torch.randn(48, 5), g.reshape(48, 2, 24), torch.full((6,), 8))
    rows = find_bands(wide)
    assert rows is not None
    problem = Problem(Jacobian({"t": rows}), torch.randn(6, 2), torch.arange(6) % 2, CrossEntropy(), 0.1)
    shape = ProblemShape(6, 2, 1, {"t": 48}, {"t": (24, 5)}, {"t": 8})
    counts = 2 * rows.counts.nbytes
    assert shape.tangent_bytes == rows.nbytes - counts // 2
    contrasted = problem.contrasted.jacobian
    assert isinstance(contrasted, Jacobian)
    inputs = 8 * rows.x.numel()  # which the two problems have in common
    assert shape.problem_bytes == problem.jacobian.nbytes + contrasted.nbytes - inputs - counts


def test_a_store_without_a_shard_is_refused(tmp_path: Path) -> None:
    network = tiny("bert")
    tangent = linearize(network, examples("bert", 4), store=tmp_path)
    assert tangent.source is not None
    (shard,) = tangent.source.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(
        InputError, match=r"got a damaged store .* does not match its size.* delete that folder"
    ):
        rows_in_store(tangent.source, tangent.targets)


def test_an_example_without_lengths_counts_as_one() -> None:
    _, tensors, _ = NETWORKS["bert"]()
    assert [length_of(example) for example in examples_of(tensors)] == [9, 9, 9]
    assert length_of({"scalar": torch.tensor(1.0)}) == 1
