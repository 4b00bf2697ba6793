"""Forged run folders: whatever is swapped, and whatever a store or an adapter holds, `verify` says so."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from small_runs import small_settings
from tangentlora.cli import main
from tangentlora.errors import InputError
from tangentlora.studies.fit import fit
from tangentlora.theory.distance import Distance
from tangentlora.theory.seals import SEAL, described, seal_of, sealed_files
from tangentlora.theory.verify import verify

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    fit(small_settings(folder, lam=0.02), folder / "run")
    return folder / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def rewrite(path: Path, change: Change) -> None:
    value = read(path)
    change(value)
    path.write_text(json.dumps(value))


def retensor(path: Path, change: Change) -> None:
    tensors = {name: value.copy() for name, value in load_file(path).items()}
    change(tensors)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)


def reseal(run: Path) -> None:
    """Redo the checksums, as someone would who covers their tracks."""
    (run / SEAL).write_text(json.dumps(described(seal_of(run, sealed_files(run, read(run / "run.json"))))))


def test_every_file_of_a_run_is_sealed(run: Path) -> None:
    result = verify(run)
    assert result.valid
    assert result.sealed
    assert "All files of the run are as they were sealed, and its adapter is the answer" in result.sentence()
    assert "Taken on trust: the Jacobian in the store, and the labels" in result.sentence()
    names = set(read(run / SEAL)["files"])
    there = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names == there - {SEAL}
    for name in sorted(names):
        whole = (run / name).read_bytes()
        for content in (whole + b" ", None):
            (run / name).unlink()
            if content is not None:
                (run / name).write_bytes(content)
            try:
                assert not verify(run).valid, name
            except InputError:
                assert name.endswith((".json", ".safetensors"))  # missing, or no longer readable
        (run / name).write_bytes(whole)
    assert verify(run).valid


def test_a_file_beside_the_adapter_that_was_not_sealed_is_told(run: Path) -> None:
    (run / "adapter" / "tokenizer.json").write_text("{}")
    assert "adapter/tokenizer.json is in the folder and was not sealed" in verify(run).sentence()
    (run / "notes.txt").write_text("a user's own file is no part of the run")
    (run / "adapter" / "tokenizer.json").unlink()
    assert verify(run).valid


def test_a_run_without_its_seal_was_not_finished(run: Path) -> None:
    (run / SEAL).unlink()
    assert "seal.json is missing, so the run was not finished" in verify(run).sentence()


@pytest.mark.parametrize("seal", [{}, {"format": 2, "files": {}}, {"format": 1, "files": []}, []])
def test_a_seal_that_is_none_is_told(run: Path, seal: Any) -> None:
    (run / SEAL).write_text(json.dumps(seal))
    with pytest.raises(InputError, match=r"seal\.json"):
        verify(run)


def test_a_run_of_an_earlier_version_is_read_and_said_not_to_be_sealed(run: Path) -> None:
    (run / SEAL).unlink()
    rewrite(run / "run.json", lambda record: record.pop("sealed"))
    result = verify(run)
    assert result.valid
    assert not result.sealed
    assert "its other files were not sealed" in result.sentence()
    retensor(
        run / "adapter" / "adapter_model.safetensors", lambda t: t.update({k: 2 * w for k, w in t.items()})
    )
    assert "the adapter's update of" in verify(run).sentence()  # that is no matter of seals


def test_report_renews_the_seal_of_its_pages_and_of_nothing_else(run: Path) -> None:
    (run / "README.md").write_text("changed")
    assert "README.md is not the file that was written" in verify(run).sentence()
    assert main(["report", str(run)]) == 0
    assert verify(run).valid
    (run / "metrics.jsonl").write_text("")
    assert main(["report", str(run)]) == 0
    assert "metrics.jsonl is not the file that was written" in verify(run).sentence()


def test_an_answer_that_is_listed_twice_is_told(run: Path) -> None:
    rewrite(run / "run.json", lambda record: record["runs"].append(record["runs"][0] | {"name": "again"}))
    reseal(run)
    assert "run.json lists the answer in . more than once" in verify(run).sentence()


ADAPTERS: dict[str, Change] = {
    "alpha": lambda c: c.update(lora_alpha=2 * c["lora_alpha"], alpha_pattern={}),
    "r": lambda c: c.update(r=c["r"] + 1),
    "no r": lambda c: c.pop("r"),
    "r as text": lambda c: c.update(r=str(c["r"])),
    "a pattern that never ends": lambda c: c.update(rank_pattern={"^((e|n)+)+!": 1}),
    "rsLoRA and alpha": lambda c: c.update(use_rslora=True, lora_alpha=3 * c["lora_alpha"]),
    "DoRA": lambda c: c.update(use_dora=True),
    "no targets": lambda c: c.update(target_modules=[]),
    "biases": lambda c: c.update(bias="all"),
    "transposed": lambda c: c.update(fan_in_fan_out=True),
    "a head": lambda c: c.update(modules_to_save=["classifier"]),
    "another method": lambda c: c.update(peft_type="LOHA"),
}


@pytest.mark.parametrize("what", ADAPTERS)
def test_an_adapter_that_means_another_update_is_rejected(run: Path, what: str) -> None:
    rewrite(run / "adapter" / "adapter_config.json", ADAPTERS[what])
    reseal(run)
    result = verify(run)
    assert not result.valid
    assert all("adapter" in reason for reason in result.reasons)


def test_adapter_tensors_are_the_answer_to_float32(run: Path) -> None:
    path = run / "adapter" / "adapter_model.safetensors"
    whole = path.read_bytes()
    nudges: list[Callable[[Any], Any]] = [
        lambda w: w * np.float32(1.00001),
        lambda w: w.astype(np.float64),
        lambda w: w.astype(np.float16),
        lambda w: np.nan * w,
        lambda w: w[:-1],
        lambda w: w.ravel(),
    ]
    for name in load_file(path):
        for nudge in nudges:
            path.write_bytes(whole)
            retensor(path, lambda t, n=name, f=nudge: t.update({n: f(t[n])}))
            reseal(run)
            assert not verify(run).valid
    path.write_bytes(whole)
    reseal(run)
    assert verify(run).valid
    shutil.rmtree(run / "adapter")
    reseal(run)
    assert "the adapter is missing" in verify(run).sentence()


def put(part: str, spoil: Callable[[Any], Any]) -> Change:
    """Return a change of the first tensor of a store's shard that ends so."""

    def change(tensors: dict[str, Any]) -> None:
        name = next(key for key in tensors if key == part or key.endswith(f"/{part}"))
        tensors[name] = spoil(tensors[name])

    return change


def with_first(number: Any) -> Callable[[Any], Any]:
    def spoil(tensor: Any) -> Any:
        tensor.reshape(-1)[0] = number
        return tensor

    return spoil


STORES: dict[str, Change] = {
    **{
        f"{part} {number}": put(part, with_first(number))
        for part in ("f0", "x", "g")
        for number in (np.nan, np.inf)
    },
    **{f"{part} of whole numbers": put(part, lambda w: w.astype(np.int64)) for part in ("f0", "x", "g")},
    **{f"{part} in one dimension": put(part, lambda w: w.ravel()) for part in ("f0", "x", "g")},
    **{f"{part} of real numbers": put(part, lambda w: w.astype(np.float64)) for part in ("index", "counts")},
    **{f"{part} negative": put(part, with_first(-1)) for part in ("index", "counts")},
    **{f"{part} beyond": put(part, with_first(10**9)) for part in ("index", "counts")},
    **{f"{part} in two dimensions": put(part, lambda w: w[:, None]) for part in ("index", "counts")},
    **{f"{part} shorter": put(part, lambda w: w[1:]) for part in ("f0", "index", "counts", "x", "g")},
    **{
        f"{part} missing": lambda t, p=part: [t.pop(k) for k in list(t) if k.endswith(p)]
        for part in ("f0", "index", "counts", "x", "g")
    },
    "an example twice": lambda t: t["index"].__setitem__(0, t["index"][1]),
    "no outputs": put("f0", lambda w: w[:, :0]),
}


@pytest.mark.parametrize("what", STORES)
def test_a_store_of_anything_but_gradients_is_one_sentence_and_status_2(
    run: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Path(read(run / "run.json")["tangent"]["store"])
    store = Path(shutil.copytree(held, tmp_path / "store"))
    shard = store / "shard-000-00000.safetensors"
    retensor(shard, STORES[what])
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    rewrite(store / "manifest.json", lambda manifest: manifest["shards"][0].update(sha256=digest))
    assert main(["verify", str(run), "--store", str(store)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "got a damaged store at" in said.err


MANIFESTS: dict[str, Change] = {
    "no targets": lambda m: m["identity"].update(targets=[]),
    "targets alike": lambda m: m["identity"]["targets"].append(m["identity"]["targets"][0]),
    "a side of 0": lambda m: m["identity"]["targets"][0].update(shape=[0, 4]),
    "a side as text": lambda m: m["identity"]["targets"][0].update(shape=["16", 16]),
    "a shape as a number": lambda m: m["identity"]["targets"][0].update(shape=16),
    "rows as text": lambda m: m["identity"]["targets"][0].update(rows="ab"),
    "shards as a number": lambda m: m.update(shards=3),
    "a file elsewhere": lambda m: m["shards"][0].update(file="../run/solution.safetensors"),
    "a file as a number": lambda m: m["shards"][0].update(file=3),
    "other outputs": lambda m: m.update(n_outputs=7),
    "shared as a list": lambda m: m["shards"][0].update(shared=[]),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_describes_no_store_is_one_sentence(run: Path, tmp_path: Path, what: str) -> None:
    held = Path(read(run / "run.json")["tangent"]["store"])
    store = Path(shutil.copytree(held, tmp_path / "store"))

    def change(manifest: dict[str, Any]) -> None:
        MANIFESTS[what](manifest)
        text = json.dumps(manifest["identity"], sort_keys=True)
        manifest["key"] = hashlib.sha256(text.encode()).hexdigest()[:32]

    rewrite(store / "manifest.json", change)
    with pytest.raises(InputError, match=r"got a damaged store at|expected the same layers"):
        verify(run, store)


def test_a_gap_is_said_in_units_of_the_loss_and_of_the_objective() -> None:
    small = Distance(1e-13, 1.4e-15)
    assert small.said() == "1.0e-13 (7.1e+01 of the objective)"
    assert not small.telling
    assert "says little of what is left of it" in small.warning()
    assert Distance(1e-9, 0.5).telling
    assert not Distance(1e-9, 0.0).telling
