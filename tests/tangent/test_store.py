"""The store: the same bytes back, one folder per identity, and every kind of damage refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from fake_network import fake_network
from tangentlora.errors import InputError
from tangentlora.models.network import Network
from tangentlora.models.targets import Target
from tangentlora.tangent import store_writer
from tangentlora.tangent.linearize import linearize
from tangentlora.tangent.store import (
    load_tangent,
    save_tangent,
)
from tangentlora.tangent.store_writer import file_sha256
from tangentlora.tangent.tangent import FORMAT, Tangent, key_of

TARGETS = (Target("a", "a", (3, 4)), Target("b:tail", "b", (2, 3), rows=(3, 5)))


def network(fingerprint: str = "0" * 64) -> Network:
    module = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(3, 5)})

    def read(tensors: Mapping[str, Tensor]) -> Tensor:
        x = tensors["x"].reshape(len(tensors["x"]), -1, 4)
        return module["b"](torch.tanh(module["a"](x))).sum(dim=1)[:, 2:]

    return fake_network(module, read, fingerprint)


def examples(n: int = 6) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [{"x": torch.randn(1 + i % 3, 4, generator=generator)} for i in range(n)]


@pytest.fixture
def tangent(tmp_path: Path) -> Tangent:
    """A tangent that was written to its own store."""
    return linearize(network(), examples(), TARGETS, store=tmp_path / "store")


def folder_of(tangent: Tangent) -> Path:
    assert tangent.source is not None
    return tangent.source


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_equal(found: Tangent, expected: Tangent) -> None:
    assert found.targets == expected.targets
    assert found.identity == expected.identity
    assert torch.equal(found.f0, expected.f0)
    assert list(found.jacobian.layers) == list(expected.jacobian.layers)
    for name, rows in expected.jacobian.layers.items():
        for part in ("x", "g", "counts"):
            ours, theirs = getattr(found.jacobian.layers[name], part), getattr(rows, part)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def test_what_is_read_is_what_was_written(tangent: Tangent, tmp_path: Path) -> None:
    folder = folder_of(tangent)
    assert folder == tmp_path / "store" / tangent.key
    loaded = load_tangent(folder)
    assert_equal(loaded, tangent)
    assert loaded.source == folder
    assert loaded.key == tangent.key == key_of(tangent.identity)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "shard-000-00000.safetensors"]
    assert [path.name for path in (tmp_path / "store").iterdir()] == [tangent.key]


def test_the_manifest_says_what_is_held(tangent: Tangent) -> None:
    manifest = json.loads((folder_of(tangent) / "manifest.json").read_text())
    assert manifest["identity"]["format"] == FORMAT
    assert manifest["identity"]["weights_sha256"] == "0" * 64
    assert manifest["identity"]["versions"]["torch"] == version("torch")
    assert manifest["dense_bytes"] == 4 * 6 * 3 * (3 * 4 + 2 * 3)
    (shard,) = manifest["shards"]
    assert shard["examples"] == 6
    assert shard["shared"] == {}
    size = (folder_of(tangent) / shard["file"]).stat().st_size
    assert manifest["bytes"] == shard["bytes"] == size >= tangent.jacobian.nbytes
    held = (folder_of(tangent) / shard["file"]).read_bytes()
    assert shard["sha256"] == hashlib.sha256(held).hexdigest()


@pytest.mark.parametrize("shard_bytes", [1, 700])
def test_many_shards_hold_the_same_as_one(
    tangent: Tangent, tmp_path: Path, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "SHARD_BYTES", shard_bytes)
    folder = tmp_path / "many"
    save_tangent(tangent, folder)
    shards = list(folder.glob("*.safetensors"))
    assert len(shards) == 6 if shard_bytes == 1 else 1 < len(shards) < 6
    assert_equal(load_tangent(folder), tangent)


def test_a_second_run_reads_the_store_and_never_calls_the_network(tangent: Tangent, tmp_path: Path) -> None:
    silent = network()

    def refuse(*_: object) -> None:
        raise AssertionError("the network was called")

    silent.module["a"].register_forward_pre_hook(refuse)
    with pytest.raises(AssertionError, match="the network was called"):
        linearize(silent, examples(), TARGETS)
    again = linearize(silent, examples(), TARGETS, store=tmp_path / "store")
    assert_equal(again, tangent)
    assert again.source == tangent.source


def test_a_tangent_depends_on_everything_it_was_made_from(tangent: Tangent) -> None:
    changed_data, shorter = examples(), examples()
    changed_data[5]["x"][-1, -1] += 1e-3
    shorter[2] = {"x": shorter[2]["x"][:2]}
    same_bytes = [{"x": example["x"].reshape(-1, 2)} for example in examples()]
    deeper = (TARGETS[0], Target("b:tail", "b", (1, 3), rows=(4, 5)))
    others = [
        linearize(network("1" * 64), examples(), TARGETS),
        linearize(replace(network(), name="another"), examples(), TARGETS),
        linearize(network(), changed_data, TARGETS),
        linearize(network(), shorter, TARGETS),
        linearize(network(), same_bytes, TARGETS),
        linearize(network(), examples()[:5], TARGETS),
        linearize(network(), examples()[::-1], TARGETS),
        linearize(network(), examples(), TARGETS[:1]),
        linearize(network(), examples(), TARGETS[::-1]),
        linearize(network(), examples(), deeper),
        linearize(network(), examples(), TARGETS, batch_size=5),
    ]
    keys = {tangent.key, *(other.key for other in others)}
    assert len(keys) == 1 + len(others)
    assert linearize(network(), examples(), TARGETS).key == tangent.key


Damage = Callable[[Path], object]


def change_manifest(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


def write_manifest(text: bytes) -> Damage:
    return lambda folder: (folder / "manifest.json").write_bytes(text)


def change_shard(change: Callable[[bytearray], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "shard-000-00000.safetensors"
        held = bytearray(path.read_bytes())
        change(held)
        path.write_bytes(held)

    return damage


def flip(held: bytearray) -> None:
    held[-5] ^= 1


@pytest.mark.parametrize(
    "damage",
    [
        change_shard(lambda held: held.pop()),
        change_shard(lambda held: held.clear()),
        change_shard(flip),
        lambda folder: (folder / "shard-000-00000.safetensors").unlink(),
    ],
    ids=["truncated", "emptied", "flipped", "missing"],
)
def test_a_damaged_shard_is_refused(tangent: Tangent, tmp_path: Path, damage: Damage) -> None:
    damage(folder_of(tangent))
    message = (
        r"got a damaged store .*: shard-000-00000\.safetensors (is missing or )?does not match its .* delete "
        "that folder"
    )
    with pytest.raises(InputError, match=message):
        load_tangent(folder_of(tangent))
    with pytest.raises(InputError, match=message):
        linearize(network(), examples(), TARGETS, store=tmp_path / "store")


def another_format(manifest: dict[str, Any]) -> None:
    manifest["identity"]["format"] = FORMAT + 1
    manifest["key"] = key_of(manifest["identity"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").unlink(),
        write_manifest(b""),
        write_manifest(b"\xff\xfe{}"),
        write_manifest(b"[1, 2]"),
        write_manifest(b'{"key": 1}'),
        write_manifest(b'{"identity": {}, "key": 1}'),
        change_manifest(lambda m: m["identity"].update(batch_size=7)),
        change_manifest(lambda m: m.update(key="0" * 32)),
        change_manifest(lambda m: m.pop("shards")),
        change_manifest(lambda m: m["shards"].pop()),
        change_manifest(lambda m: m["shards"][0].pop("sha256")),
        change_manifest(lambda m: m.update(shards=["shard-000-00000.safetensors"])),
        change_manifest(another_format),
    ],
)
def test_a_damaged_manifest_is_refused(tangent: Tangent, damage: Damage) -> None:
    damage(folder_of(tangent))
    message = (
        rf"whose manifest\.json is missing, .* tangents in format {FORMAT}: delete that folder and run again"
    )
    with pytest.raises(InputError, match=message):
        load_tangent(folder_of(tangent))


def test_a_folder_that_is_not_there_and_one_under_another_name_are_refused(
    tangent: Tangent, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"nowhere, whose manifest\.json is missing"):
        load_tangent(tmp_path / "nowhere")
    other = linearize(network(), examples()[:2], TARGETS)
    folder_of(tangent).rename(tmp_path / "store" / other.key)
    with pytest.raises(
        InputError, match=f"which holds the tangent {tangent.key}, expected the one that it is"
    ):
        linearize(network(), examples()[:2], TARGETS, store=tmp_path / "store")


def test_a_folder_that_exists_is_never_written_to(tangent: Tangent, tmp_path: Path) -> None:
    folder = folder_of(tangent)
    before = contents(folder)
    other = linearize(network(), examples()[:2], TARGETS)
    save_tangent(other, folder)
    assert contents(folder) == before
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    save_tangent(other, own)
    assert contents(own) == {"thesis.txt": b"mine"}
    (own / "thesis.txt").unlink()
    save_tangent(other, own)
    assert contents(own) == {}


def test_two_writers_of_one_tangent_leave_one_sound_folder(
    tangent: Tangent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "raced"
    replace_folder = os.replace

    def after_another(source: Path, target: Path) -> None:
        monkeypatch.undo()
        save_tangent(tangent, tmp_path / "first")
        replace_folder(tmp_path / "first", target)
        replace_folder(source, target)

    monkeypatch.setattr(os, "replace", after_another)
    save_tangent(tangent, folder)
    assert_equal(load_tangent(folder), tangent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raced", "store"]


def test_a_writer_that_fails_leaves_nothing(
    tangent: Tangent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "SHARD_BYTES", 1)
    write, written = safetensors.torch.save_file, []

    def fail_at_the_third(tensors: dict[str, Tensor], path: Path) -> None:
        if len(written) == 2:
            raise OSError("no space left on device")
        written.append(path)
        write(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", fail_at_the_third)
    with pytest.raises(OSError, match="no space left"):
        save_tangent(tangent, tmp_path / "new" / "t")
    assert len(written) == 2
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setattr(os, "replace", lambda *_: fail_at_the_third({}, Path()))
    with pytest.raises(OSError, match="no space left"):
        save_tangent(tangent, tmp_path / "new" / "t")
    assert list((tmp_path / "new").iterdir()) == []


KILLED = """
import os, sys
from pathlib import Path
from tangentlora.tangent import store, store_writer

tangent = store.load_tangent(Path(sys.argv[1]))
checksum = store_writer.file_sha256

def kill(path):
    checksum(path)
    os._exit(9)

store_writer.file_sha256 = kill
store.save_tangent(tangent, Path(sys.argv[2]))
"""


def test_a_writer_that_is_killed_leaves_no_folder_that_anyone_would_read(
    tangent: Tangent, tmp_path: Path
) -> None:
    target = tmp_path / "killed" / "t"
    command = [sys.executable, "-c", KILLED, str(folder_of(tangent)), str(target)]
    assert subprocess.run(command, check=False).returncode == 9
    (left,) = target.parent.iterdir()
    assert left.name.startswith(".t.")
    assert left.name.endswith(".partial")
    assert [path.name for path in left.iterdir()] == ["shard-000-00000.safetensors"]
    save_tangent(tangent, target)
    assert_equal(load_tangent(target), tangent)


def test_checksums_are_those_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"tangent")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"tangent").hexdigest()
