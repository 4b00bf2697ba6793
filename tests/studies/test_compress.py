"""Compression of adapters that PEFT trained on tiny networks: outputs kept, ranks down, peers worse."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch

from small_runs import small_settings, write_images
from tangentlora.adapters import loaded_outputs, write_adapter
from tangentlora.adapters.train import train_lora, whole_weights
from tangentlora.blocks import Factors
from tangentlora.data import Examples
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tangentlora.models.network import Network
from tangentlora.models.targets import Target
from tangentlora.problem.losses import CrossEntropy
from tangentlora.studies.compress import compress_update
from tangentlora.studies.compression import Compression
from tangentlora.studies.compressor import Compressor
from tangentlora.studies.prepare import prepare
from tangentlora.theory.output_reduction import distance

KINDS = ("bert", "gpt2", "vit")
RANK = 8


@dataclass(frozen=True)
class Trained:
    """A tiny network and a wasteful adapter that PEFT trained on it."""

    network: Network
    targets: tuple[Target, ...]
    factors: Factors
    train: Examples
    test: Examples

    @property
    def given(self) -> tuple[Network, tuple[Target, ...], Factors, Examples, Examples]:
        return self.network, self.targets, self.factors, self.train, self.test

    def outputs(self, factors: Factors) -> torch.Tensor:
        with attached(self.network.module, self.targets, factors):
            z = self.network.predict(self.train.inputs).double()
        return z - z.mean(1, keepdim=True)

    def bits(self) -> dict[str, list[int]]:
        state = self.network.module.state_dict()
        return {name: w.contiguous().view(torch.uint8).flatten().tolist() for name, w in state.items()}


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    changes = {}
    if kind == "vit":
        changes["data"] = str(write_images(folder / "images", ("red", "green", "blue"), each=8))
    prepared = prepare(small_settings(folder, kind, **changes))
    network, splits = prepared.network, prepared.splits
    targets = whole_weights(network.module, network.targets(("query", "value"), "all"))
    factors = train_lora(
        network,
        targets,
        splits.train.inputs,
        splits.train.labels,
        rank=RANK,
        alpha=16.0,
        learning_rate=1e-2,
        epochs=8,
        batch_size=4,
        weight_decay=0.01,
        seed=0,
        on_epoch=lambda epoch, factors: None,
    )
    assert splits.test is not None
    return Trained(network, targets, factors, splits.train, splits.test)


@pytest.fixture(scope="module")
def compressed(trained: Trained) -> Compression:
    before = trained.bits()
    found = compress_update(*trained.given, loss=CrossEntropy())
    assert trained.bits() == before
    return found


def test_the_theorems_count_is_reached_and_the_outputs_stay(trained, compressed):
    given, polished = compressed.row("given"), compressed.row("polished")
    assert sum(r * (r + 1) // 2 for r in given.ranks.values()) > compressed.constraints
    assert compressed.theorem_count <= compressed.constraints
    assert compressed.theorem_count == sum(r * (r + 1) // 2 for r in polished.ranks.values())
    assert polished.parameters < given.parameters / 2
    assert compressed.chosen is polished
    assert polished.train.largest_change < 1e-4
    assert polished.train.largest_change <= compressed.row("theorem 1").train.largest_change
    change = trained.outputs(compressed.factors) - trained.outputs(trained.factors)
    assert polished.train.largest_change == pytest.approx(float(change.abs().max()), abs=1e-12)


def test_the_refit_that_moves_the_weights_least_goes_on(trained):
    network, targets, factors, train, test = trained.given
    job = Compressor(network, targets, factors, train, test, CrossEntropy(), None, True, 32, False)
    far = {name: (3 * u, v) for name, (u, v) in job.factors.items()}  # of all ranks: it can be refitted
    near = job.factors
    assert distance(job.refitted([far, near]), near) < 1e-3 * distance(job.refitted([far]), near)
    nothing = job.problem.zero()  # is as near as may be, but gives other outputs
    assert distance(job.refitted([nothing, near]), near) < 1e-3 * distance(nothing, near)


def test_truncation_of_the_same_size_changes_the_outputs_more(compressed):
    polished = compressed.row("polished")
    same_ranks, same_size = compressed.row("energy, same ranks"), compressed.row("energy, same size")
    assert same_ranks.ranks == polished.ranks
    assert same_size.parameters <= polished.parameters
    for peer in (same_ranks, same_size):
        assert peer.train.largest_change > 10 * polished.train.largest_change
        assert peer.train.relative_change > 10 * polished.train.relative_change


def test_the_rows_are_measured_on_the_network(trained, compressed):
    bare, given = compressed.row("no adapter"), compressed.row("given")
    assert bare.parameters == bare.nuclear_norm == 0
    assert bare.train.relative_change == bare.test.relative_change == 1
    assert given.train.largest_change == given.test.relative_change == 0
    assert given.parameters == RANK * sum(sum(target.shape) for target in trained.targets)
    labels = torch.tensor(trained.train.labels)
    z = trained.outputs(trained.factors)
    loss = CrossEntropy().value(z, labels).mean()
    assert given.train.loss == pytest.approx(float(loss), abs=1e-9)
    assert given.train.accuracy == float((z.argmax(1) == labels).double().mean())
    bare_change = trained.outputs(compressed.factors) - z
    effect = trained.outputs({n: (u[:, :0], v[:, :0]) for n, (u, v) in trained.factors.items()}) - z
    expected = float(bare_change.norm() / effect.norm())
    assert compressed.chosen.train.relative_change == pytest.approx(expected, abs=1e-12)


def test_the_record_and_the_message_say_what_was_reached(trained, compressed):
    record = json.loads(json.dumps(compressed.record()))
    assert [row["name"] for row in record["rows"]] == [
        "no adapter",
        "given",
        "theorem 1",
        "polished",
        "energy, same ranks",
        "energy, same size",
    ]
    assert record["examples"] == {"train": len(trained.train), "test": len(trained.test)}
    assert record["message"] == compressed.message
    assert f"c = {compressed.constraints}" in compressed.message
    assert f"On {len(trained.test)} examples held out of this compression" in compressed.message
    share = 100 * compressed.chosen.test.relative_change
    assert f", {share:.3g}% of the adapter's effect" in compressed.message
    best = min(row.test.largest_change for row in compressed.rows[-2:])
    worse = compressed.chosen.test.largest_change > best
    assert ("There truncation is better" in compressed.message) == worse


def test_peft_loads_the_compressed_adapter(trained, compressed, tmp_path):
    folder = write_adapter(
        compressed.factors,
        trained.targets,
        tmp_path / "adapter",
        module=trained.network.module,
        base_model="tiny",
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    loaded = loaded_outputs(trained.network, folder, trained.train.inputs).double()
    expected = trained.outputs(compressed.factors)
    scale = float(expected.abs().max())
    difference = loaded - loaded.mean(1, keepdim=True) - expected
    assert float(difference.abs().max()) < 1e-6 * max(1.0, scale)


def test_a_rank_is_kept_to_and_the_answer_is_repeatable(trained):
    found, again = (compress_update(*trained.given, loss=CrossEntropy(), rank=2) for _ in range(2))
    assert set(found.chosen.ranks.values()) == {2}
    peers = found.rows[-2:]
    for peer in peers:
        assert peer.train.relative_change > 100 * found.chosen.train.relative_change
    for name, pair in found.factors.items():
        for one, other in zip(pair, again.factors[name], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    plain = compress_update(*trained.given, loss=CrossEntropy(), rank=2, polish=False)
    assert [row.name for row in plain.rows][2:4] == ["by outputs", "energy, same ranks"]
    assert plain.chosen.name == "by outputs"
    assert plain.chosen.train == found.row("by outputs").train
    assert plain.chosen.train.largest_change >= found.chosen.train.largest_change


@pytest.mark.parametrize("trained", ["bert"], indirect=True)
def test_a_tolerance_is_met_by_fewer_directions(trained):
    network, targets, factors, train, _ = trained.given
    found = compress_update(network, targets, factors, train, loss=CrossEntropy(), tolerance=0.05)
    assert found.chosen.train.largest_change <= 0.05
    assert "(tolerance 5.0e-02: met)" in found.message
    assert "Nothing was held out" in found.message
    plain = compress_update(
        network, targets, factors, train, loss=CrossEntropy(), tolerance=0.05, polish=False
    )
    assert plain.chosen.train.largest_change <= 0.05
    assert sum(found.chosen.ranks.values()) <= sum(plain.chosen.ranks.values())
    narrow = compress_update(network, targets, factors, train, loss=CrossEntropy(), tolerance=0.05, rank=4)
    assert max(narrow.chosen.ranks.values()) <= 4


@pytest.mark.parametrize("trained", ["gpt2"], indirect=True)
def test_a_tolerance_below_rounding_is_refused_with_what_was_reached(trained):
    with pytest.raises(InputError, match=r"got the tolerance 1\.0e-12, .* still changes by [1-9]\.\de-"):
        compress_update(*trained.given, loss=CrossEntropy(), rank=1, tolerance=1e-12)


@pytest.mark.parametrize("trained", ["bert"], indirect=True)
def test_an_adapter_that_does_nothing_needs_no_rank(trained):
    nothing = {name: (0 * u, v) for name, (u, v) in trained.factors.items()}
    found = compress_update(trained.network, trained.targets, nothing, trained.train, loss=CrossEntropy())
    assert found.chosen.parameters == 0
    assert found.chosen.train.largest_change == 0
    assert found.chosen.train.relative_change is None


@pytest.mark.parametrize("trained", ["bert"], indirect=True)
def test_numbers_out_of_range_are_refused(trained):
    with pytest.raises(InputError, match="got rank 0, expected at least 1: change --rank"):
        compress_update(*trained.given, loss=CrossEntropy(), rank=0)
    for tolerance in (0.0, float("nan")):
        with pytest.raises(InputError, match=f"got tolerance {tolerance}, expected a positive number"):
            compress_update(*trained.given, loss=CrossEntropy(), tolerance=tolerance)


@pytest.mark.parametrize("trained", ["bert"], indirect=True)
def test_factors_of_other_layers_are_refused(trained):
    wrong = dict(list(trained.factors.items())[1:])
    with pytest.raises(InputError, match="factors that do not match the targets"):
        compress_update(trained.network, trained.targets, wrong, trained.train, loss=CrossEntropy())


@pytest.mark.parametrize("trained", ["bert"], indirect=True)
def test_the_message_says_where_truncation_is_better(compressed):
    *others, polished, same_ranks, same_size = compressed.rows
    worse = replace(same_ranks.test, largest_change=polished.test.largest_change / 2)
    better = replace(same_ranks.test, largest_change=polished.test.largest_change * 2)
    for measured, said in ((worse, True), (better, False)):
        peers = (replace(same_ranks, test=measured), replace(same_size, test=better))
        message = replace(compressed, rows=(*others, polished, *peers)).message
        assert ("There truncation is better: compress on inputs" in message) == said
