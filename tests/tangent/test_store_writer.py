"""The store as it is written and read in parts: bands, inputs kept once, shards as they fill, any order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fake_network import examples_of, fake_network
from random_jacobians import random_jacobian
from tangentlora.errors import InputError
from tangentlora.models.network import Network
from tangentlora.models.targets import Target
from tangentlora.tangent import store_writer
from tangentlora.tangent.band_products import BandedRows
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.linearize import linearize
from tangentlora.tangent.store import check_shards, load_tangent, open_shards, read_shard, save_tangent
from tangentlora.tangent.store_writer import ShardEntry, ShardWriter, pack, partial_folder, publish
from tangentlora.tangent.stored_bands import from_bands, rows_from_bands, to_bands
from tangentlora.tangent.tangent import FORMAT, Tangent
from tiny_networks import NETWORKS


def tangent_of(jacobian: Jacobian) -> Tangent:
    """Return a tangent in float32 that can be written and read back."""
    targets = tuple(Target(name, name, shape) for name, shape in jacobian.shapes.items())
    identity = {
        "format": FORMAT,
        "n_examples": jacobian.n_examples,
        "targets": [{**t.__dict__, "shape": list(t.shape)} for t in targets],
    }
    f0 = torch.randn(jacobian.n_examples, jacobian.n_outputs)
    return Tangent(f0, jacobian.to(torch.float32), targets, identity)


def assert_same(found: Jacobian, expected: Jacobian) -> None:
    assert list(found.layers) == list(expected.layers)
    for name, rows in expected.layers.items():
        for part in ("x", "g", "counts"):
            assert torch.equal(getattr(found.layers[name], part), getattr(rows, part)), (name, part)


def banded(seed: int, n: int = 7, m: int = 12, width: int = 4) -> LayerRows:
    """Return rows whose output-gradients are at most `width` columns wide, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (n,), generator=generator)
    rows = int(counts.sum())
    g = torch.zeros(rows, 2, m)
    starts = torch.randint(0, m - width + 1, (rows,), generator=generator)
    for r in range(rows):
        if r % 5:
            g[r, :, starts[r] : starts[r] + width] = torch.randn(2, width, generator=generator)
    return LayerRows(torch.randn(rows, 5, generator=generator), g, counts)


@pytest.mark.parametrize("seed", range(5))
def test_bands_hold_what_is_not_zero(seed: int) -> None:
    g = banded(seed).g
    band, start = to_bands(g)
    assert start is not None
    assert band.shape == (len(g), 2, 4)
    assert torch.equal(from_bands(band, start, g.shape[2]), g)


def test_rows_that_need_every_column_and_no_rows_have_no_bands() -> None:
    g = banded(0).g
    g[3, 1, 0], g[3, 0, -1] = 1.0, 1.0
    assert to_bands(g) == (g, None)
    for none in (torch.zeros(0, 2, 6), torch.zeros(3, 2, 6)):
        band, start = to_bands(none)
        assert start is None
        assert torch.equal(band, none)


def headed(heads: int, width: int, own: int = 1, n: int = 3) -> Tensor:
    """Return output-gradients of n examples, `own` rows in the columns of each head."""
    generator = torch.Generator().manual_seed(heads)
    g = torch.zeros(n, heads, own, 2, heads, width)
    for head in range(heads):
        g[:, head, :, :, head] = torch.randn(n, own, 2, width, generator=generator)
    return g.reshape(n * heads * own, 2, heads * width)


def read_back(g: Tensor, counts: Tensor) -> LayerRows | BandedRows:
    """Return rows with these output-gradients, as they come out of a store, and assert that they do."""
    band, start = to_bands(g)
    assert start is not None
    rows = rows_from_bands(torch.randn(len(g), 5), band, start, counts, g.shape[2])
    assert torch.equal(rows.g, g)
    assert isinstance(rows, LayerRows | BandedRows)
    return rows


@pytest.mark.parametrize(("heads", "width", "own"), [(2, 3, 1), (4, 2, 1), (3, 2, 2)])
def test_rows_with_their_bands_in_common_stay_in_bands(heads: int, width: int, own: int) -> None:
    g, counts = headed(heads, width, own), torch.full((3,), heads * own)
    whole = read_back(g, counts)
    assert isinstance(whole, BandedRows)
    assert whole.bands.shape == (heads, 3, own, 2, width)
    g[0, :, 0] = 0.0  # a run that begins later ends beyond its band, in zeros
    g[-1] = 0.0
    narrow = read_back(g, counts)
    assert isinstance(narrow, BandedRows)
    assert len(narrow.bands) == heads
    g[:, :, ::width] = 0.0  # runs narrower than the bands
    if width > 1:
        assert isinstance(read_back(g, counts), BandedRows)


def test_rows_that_are_stored_as_they_lie_are_not_copied() -> None:
    band, start = to_bands(headed(4, 2))
    assert start is not None
    rows = rows_from_bands(torch.randn(12, 5), band, start, torch.full((3,), 4), 8)
    assert isinstance(rows, BandedRows)
    assert rows.bands.untyped_storage().data_ptr() == band.untyped_storage().data_ptr()


def test_rows_without_bands_in_common_get_all_their_columns() -> None:
    g = headed(4, 3)
    assert isinstance(read_back(g, torch.tensor([4, 4, 4])), BandedRows)
    assert isinstance(read_back(g, torch.tensor([3, 5, 4])), LayerRows)
    swapped = g[[1, 0, *range(2, 12)]]
    two = read_back(swapped, torch.tensor([4, 4, 4]))
    assert isinstance(two, BandedRows)
    assert len(two.bands) == 2
    g[1, 0, :3] = 1.0  # a row that lies in the first two bands
    joined = read_back(g, torch.tensor([4, 4, 4]))
    assert isinstance(joined, BandedRows)
    assert len(joined.bands) == 2
    g[1, 0, 3:6] = 0.0
    g[1, 0, -1] = 1.0
    g[1, 0, :3] = 0.0
    assert isinstance(read_back(g, torch.tensor([4, 4, 4])), LayerRows)


@pytest.mark.parametrize("shard_bytes", [1, 300, 2**20])
def test_bands_and_shared_inputs_come_back_as_they_were(
    tmp_path: Path, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "SHARD_BYTES", shard_bytes)
    value = banded(1)
    query = replace(value, g=torch.randn(len(value.x), 2, 3))
    other = banded(2)
    tangent = tangent_of(Jacobian({"query": query, "value": value, "other": other}))
    save_tangent(tangent, tmp_path / "t")
    loaded = load_tangent(tmp_path / "t")
    assert torch.equal(loaded.f0, tangent.f0)
    assert_same(loaded.jacobian, tangent.jacobian)
    shards = open_shards(tmp_path / "t")
    assert all(shard.shared["value"] == "query" for shard in shards)
    if shard_bytes == 2**20:
        (shard,) = shards
        held = load_file(tmp_path / "t" / shard.file)
        assert held["value/g"].shape == (len(value.x), 2, 4)
        assert {"query/x", "other/x", "value/start"} <= held.keys()
        assert not {"value/x", "query/start"} & held.keys()


def test_inputs_that_differ_in_one_number_are_kept_twice() -> None:
    first, second = banded(1), banded(1)
    assert pack({"a": first, "b": second})[1] == {"b": "a"}
    second.x[0, 0] += 1e-6
    tensors, shared = pack({"a": first, "b": second})
    assert shared == {}
    assert not torch.equal(tensors["a/x"], tensors["b/x"])


def test_query_and_value_of_a_layer_that_keeps_all_tokens_share_their_inputs(tmp_path: Path) -> None:
    module, tensors, read = NETWORKS["bert"]()
    network = fake_network(module, read)
    tangent = linearize(network, examples_of(tensors), network.targets(layers="all"), store=tmp_path)
    assert tangent.source is not None
    (shard,) = open_shards(tangent.source)
    layer = "bert.encoder.layer.0.attention.self"
    assert shard.shared == {f"{layer}.value": f"{layer}.query"}
    rows = tangent.jacobian.layers
    assert torch.equal(rows[f"{layer}.value"].x, rows[f"{layer}.query"].x)
    assert rows[f"{layer}.value"].counts.tolist() == [9, 6, 4]  # its tokens, without the padding


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shard_bytes", [1, 400, 2**20])
def test_parts_in_any_order_give_the_examples_in_theirs(
    tmp_path: Path, seed: int, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "SHARD_BYTES", shard_bytes)
    tangent = tangent_of(random_jacobian(seed))
    n, jacobian = len(tangent.f0), tangent.jacobian
    order = torch.randperm(n)
    shapes = list(jacobian.shapes.values())
    with partial_folder(tmp_path / "t") as partial:
        writers = [ShardWriter(partial, process) for process in range(2)]
        for number, index in enumerate(order.split(2)):
            writers[number % 2].add(index, tangent.f0[index], jacobian.select(index).layers)
        entries = [entry for writer in writers for entry in writer.close()]
        publish(partial, tmp_path / "t", tangent.identity, entries, jacobian.n_outputs, shapes)
    loaded = load_tangent(tmp_path / "t")
    assert torch.equal(loaded.f0, tangent.f0)
    assert_same(loaded.jacobian, jacobian)
    assert {entry.file[:9] for entry in entries} <= {"shard-000", "shard-001"}
    for shard in open_shards(tmp_path / "t"):
        some = tangent.targets[-1:]
        index, f0, layers = read_shard(tmp_path / "t", shard, some)
        assert torch.equal(f0, tangent.f0[index])
        assert_same(Jacobian(layers), jacobian.only([some[0].name]).select(index))


def test_examples_that_are_there_twice_or_not_at_all_are_refused(tmp_path: Path) -> None:
    tangent = tangent_of(random_jacobian(3))
    index = torch.zeros(len(tangent.f0), dtype=torch.long)
    assert len(index) > 1
    with partial_folder(tmp_path / "t") as partial:
        writer = ShardWriter(partial)
        writer.add(index, tangent.f0, tangent.jacobian.layers)
        publish(partial, tmp_path / "t", tangent.identity, writer.close(), tangent.f0.shape[1], [])
    with pytest.raises(InputError, match=r"its shards do not hold every example once, .* delete"):
        load_tangent(tmp_path / "t")


def test_a_shard_of_another_size_is_found_at_once_and_other_bytes_by_their_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    save_tangent(tangent_of(random_jacobian(1)), folder)
    (shard,) = open_shards(folder)
    content = bytearray((folder / shard.file).read_bytes())
    content[-1] ^= 1
    (folder / shard.file).write_bytes(content)
    assert open_shards(folder) == [shard]
    with pytest.raises(InputError, match="does not match its checksum"):
        check_shards(folder, [shard])
    (folder / shard.file).write_bytes(content[:-1])
    with pytest.raises(InputError, match="is missing or does not match its size"):
        open_shards(folder)
    (folder / shard.file).write_bytes(b"")
    with pytest.raises(InputError, match=r"shard-000-00000\.safetensors cannot be read"):
        read_shard(folder, shard, ())
    with pytest.raises(InputError, match="cannot be read"):
        read_shard(folder, ShardEntry("gone", 1, "", 0), ())


def wide_network() -> Network:
    module = nn.ModuleDict({"a": nn.Linear(64, 64), "head": nn.Linear(64, 2)})

    def read(tensors: Mapping[str, Tensor]) -> Tensor:
        outputs: Tensor = module["head"](torch.tanh(module["a"](tensors["x"])).sum(1))
        return outputs

    return fake_network(module, read)


def many(n: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [{"x": torch.randn(8, 64, generator=generator)} for _ in range(n)]


WIDE = (Target("a", "a", (64, 64)),)


def test_a_shard_is_written_as_soon_as_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "SHARD_BYTES", 4 * 8 * 192 * 4)  # four examples
    network, seen = wide_network(), []

    def look(*_: object) -> None:
        seen.append(len(list(tmp_path.glob(".*/shard-*"))))

    network.module["a"].register_forward_pre_hook(look)
    tangent = linearize(network, many(12), WIDE, batch_size=3, store=tmp_path)
    assert seen == [0, 0, 0, 1, 2]  # before each batch, and the first example alone
    assert tangent.source is not None
    shards = open_shards(tangent.source)
    assert [shard.examples for shard in shards] == [4, 4, 4]
    assert_same(tangent.jacobian, linearize(network, many(12), WIDE, batch_size=3).jacobian)


def test_a_writer_holds_no_more_than_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**20
    monkeypatch.setattr(store_writer, "SHARD_BYTES", size)
    writer, held = ShardWriter(tmp_path), []
    for number in range(12):
        x, g = torch.randn(100, 256), torch.randn(100, 2, 512)
        rows = {"a": LayerRows(x, g, torch.full((10,), 10))}
        writer.add(torch.arange(10) + 10 * number, torch.randn(10, 2), rows)
        kept = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for _, _, part in writer._held
            for layer in part.layers.values()
            for tensor in (layer.x, layer.g)
        }
        held.append(sum(kept.values()))
    assert 0 < max(held) <= size
    entries = writer.close()
    assert sum(entry.examples for entry in entries) == 120
    assert all(entry.bytes <= 1.01 * size for entry in entries)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    network, folders = wide_network(), []
    for name in ("one", "two"):
        tangent = linearize(network, many(9), WIDE, batch_size=4, store=tmp_path / name)
        assert tangent.source is not None
        folders.append({path.name: path.read_bytes() for path in tangent.source.iterdir()})
    assert folders[0] == folders[1]


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from tangentlora.tangent import store_writer
from test_store_writer import WIDE, linearize, many, wide_network

store_writer.SHARD_BYTES = 1
network, seen = wide_network(), []
network.module["a"].register_forward_pre_hook(lambda *_: len(seen) == 3 and os._exit(9) or seen.append(0))
linearize(network, many(12), WIDE, batch_size=3, store=Path(sys.argv[1]))
"""


def test_a_run_that_is_killed_while_it_streams_leaves_the_store_usable(tmp_path: Path) -> None:
    paths = [os.path.dirname(os.path.dirname(__file__)), os.path.dirname(__file__)]
    command = [sys.executable, "-c", KILLED, str(tmp_path), *paths]
    assert subprocess.run(command, check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    assert len(list(left.iterdir())) == 5  # two batches of three, the last example still held
    tangent = linearize(wide_network(), many(12), WIDE, batch_size=3, store=tmp_path)
    assert tangent.source is not None
    assert len(json.loads((tangent.source / "manifest.json").read_text())["shards"]) == 1
