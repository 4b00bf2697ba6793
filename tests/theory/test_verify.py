"""Verification from the files alone: what is right is accepted, and every kind of tampering is not."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from random_problems import LOSSES, random_problem
from small_runs import small_settings, write_sentences
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.models.targets import Target
from tangentlora.problem.losses import CrossEntropy, Squared
from tangentlora.problem.objective import Problem
from tangentlora.solvers.certified import Certified
from tangentlora.studies.fit import fit
from tangentlora.tangent import store_writer
from tangentlora.tangent.centred import CentredJacobian
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.store import save_tangent
from tangentlora.tangent.tangent import FORMAT, Tangent
from tangentlora.theory.certificate import Certificate, certify
from tangentlora.theory.evidence import Answer, read_answer
from tangentlora.theory.recompute import recompute
from tangentlora.theory.seals import SEAL, described, seal_of, sealed_files
from tangentlora.theory.shards import Layer, Shard, Store, read_store
from tangentlora.theory.verify import Verification, verify

REPEATED = ("objective", "factored_objective", "lower_bound", "gap", "relative_gap", "certified")
FIELDS = tuple(Certificate.__dataclass_fields__)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified run, made end to end on a tiny checkpoint and a csv file."""
    folder = tmp_path_factory.mktemp("made")
    fit(small_settings(folder), folder / "run")
    return folder / "run"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of the certified run to tamper with; the store stays where it was."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = read(path)
    change(value)
    path.write_text(json.dumps(value))


def seal(run: Path) -> None:
    """Record the files as they are now, as someone would who covers their tracks."""
    digests = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest()
        for name in ("solution.safetensors", "certificate.json")
    }
    rewrite(run / "run.json", lambda record: record["runs"][0].update(sha256=digests))
    if (run / SEAL).exists():
        files = seal_of(run, sealed_files(run, read(run / "run.json")))
        (run / SEAL).write_text(json.dumps(described(files)))


def tamper_tensors(run: Path, change: Callable[[dict[str, NDArray[Any]]], None]) -> None:
    tensors = load_file(run / "solution.safetensors")
    change(tensors)
    save_file(
        {key: np.ascontiguousarray(value) for key, value in tensors.items()}, run / "solution.safetensors"
    )


def assert_rejected(result: Verification, *reasons: str) -> None:
    assert not result.valid
    assert not result.certified
    assert result.sentence().startswith("Rejected: ")
    for reason in reasons:
        assert reason in result.sentence()


def test_a_run_made_end_to_end_is_valid_and_certified(original: Path) -> None:
    result = verify(original)
    assert result.valid
    assert result.certified
    assert result.reasons == ()
    assert result.sentence().startswith("Valid: the answer is within ")
    assert set(result.recomputed) == set(FIELDS)
    assert verify(str(original)) == result


def test_the_copy_is_valid_as_well_and_so_is_a_store_that_moved(run: Path, tmp_path: Path) -> None:
    assert verify(run).valid
    store = Path(read(run / "run.json")["tangent"]["store"])
    moved = shutil.copytree(store, tmp_path / "moved")
    rewrite(run / "run.json", lambda record: record["tangent"].update(store=str(tmp_path / "gone")))
    with pytest.raises(InputError, match=r"manifest.json, which cannot be read .* with --store"):
        verify(run)
    assert_rejected(verify(run, moved), "run.json is not the file that was written")
    seal(run)
    assert verify(run, moved).valid
    assert verify(run, str(moved)).valid


def test_the_certificate_says_in_json_exactly_what_was_computed(original: Path) -> None:
    claimed = read(original / "certificate.json")
    assert tuple(claimed) == FIELDS
    assert json.loads(json.dumps(claimed)) == claimed
    ours = verify(original).recomputed
    for name, value in claimed.items():
        assert type(value) is type(ours[name])
        if isinstance(value, float):
            assert float(repr(value)) == value
            assert value == pytest.approx(ours[name], rel=0, abs=1e-9)


def test_other_spellings_of_the_same_numbers_are_accepted(run: Path) -> None:
    claimed = read(run / "certificate.json")
    text = json.dumps(claimed, sort_keys=True, indent=7)
    text = text.replace('"tolerance": 1e-06', '"tolerance": 0.0000010').replace(
        '"lam": 0.1,', '"lam": 10.0E-2,'
    )
    assert "0.0000010" in text
    assert "10.0E-2" in text
    (run / "certificate.json").write_text(text)
    assert_rejected(verify(run), "certificate.json is not the file that was written")
    seal(run)
    assert verify(run).valid


def changed(value: Any) -> Any:
    """Return a wrong value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        name = next(iter(value))
        return value | {name: changed(value[name])}
    if isinstance(value, float):
        return value + 1e-3 if abs(value) > 1e-9 else 2 * value + 1e-8
    return value + 1 if isinstance(value, int) else f"{value}x"


TAMPERINGS: dict[str, Callable[[Any], Any]] = {
    "changed": changed,
    "null": lambda _: None,
    "not a number": lambda _: float("nan"),
    "infinite": lambda _: float("inf"),
    "huge": lambda _: 10**400,
    "text": lambda value: f"{value}.",
    "true": lambda value: True if value is not True else 1,
}


@pytest.mark.parametrize("kind", TAMPERINGS)
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_the_certificate_is_checked(run: Path, name: str, kind: str) -> None:
    wrong = TAMPERINGS[kind](read(run / "certificate.json")[name])
    rewrite(run / "certificate.json", lambda claimed: claimed.update({name: wrong}))
    assert_rejected(verify(run), "certificate.json is not the file that was written", f"{name} ")
    seal(run)
    result = verify(run)
    assert_rejected(result, f"{name} ")
    assert len(result.reasons) == (2 if name in REPEATED else 1)


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_may_be_missing(run: Path, name: str) -> None:
    rewrite(run / "certificate.json", lambda claimed: claimed.pop(name))
    seal(run)
    assert_rejected(verify(run), f"the certificate lacks {name}")


@pytest.mark.parametrize("name", ["spectral_norms", "ranks"])
def test_the_layers_of_a_field_are_those_of_the_answer(run: Path, name: str) -> None:
    rewrite(run / "certificate.json", lambda claimed: claimed[name].update(other=0))
    seal(run)
    assert_rejected(verify(run), f"{name} is ")
    rewrite(run / "certificate.json", lambda claimed: claimed[name].clear())
    seal(run)
    assert_rejected(verify(run), f"{name} is ")


def test_a_rounding_that_is_left_out_or_doubled_is_seen(run: Path) -> None:
    for factor in (0.0, 2.0):
        rewrite(run / "certificate.json", lambda claimed, f=factor: claimed.update(rounding=f * 1e-13))
        seal(run)
        assert_rejected(verify(run), "rounding is ")


@pytest.mark.parametrize("where", [("certificate",), ("run",), ("certificate", "run")])
@pytest.mark.parametrize("lam", [0.05, 0.2])
def test_another_lambda_is_seen_wherever_it_is_written(run: Path, where: tuple[str, ...], lam: float) -> None:
    if "certificate" in where:
        rewrite(run / "certificate.json", lambda claimed: claimed.update(lam=lam))
    if "run" in where:
        rewrite(run / "run.json", lambda record: record["configuration"].update(lam=lam))
    assert_rejected(verify(run))
    seal(run)
    result = verify(run)
    assert_rejected(result, "lam is " if len(where) == 1 else "objective is ")


@pytest.mark.parametrize(("name", "value"), [("tolerance", 1e-3), ("loss", "squared"), ("loss", "logistic")])
def test_the_tolerance_and_the_loss_are_those_of_the_run(run: Path, name: str, value: Any) -> None:
    rewrite(run / "run.json", lambda record: record["configuration"].update({name: value}))
    assert_rejected(verify(run))


@pytest.mark.parametrize("name", REPEATED)
def test_the_numbers_that_run_json_repeats_are_checked(run: Path, name: str) -> None:
    rewrite(
        run / "run.json", lambda record: record["runs"][0].update({name: changed(record["runs"][0][name])})
    )
    assert_rejected(verify(run), f"{name} is ", " in run.json and ")


@pytest.mark.parametrize("amount", [1e-2, 1e-6])
def test_a_perturbed_answer_is_rejected_with_or_without_new_checksums(run: Path, amount: float) -> None:
    def perturb(tensors: dict[str, NDArray[Any]]) -> None:
        name = next(key for key in tensors if key.endswith("/u") and tensors[key].size)
        tensors[name][0, 0] += amount

    tamper_tensors(run, perturb)
    assert_rejected(verify(run), "solution.safetensors is not the file that was written")
    seal(run)
    assert_rejected(verify(run), " anew")


def test_changed_labels_are_rejected(run: Path) -> None:
    tamper_tensors(run, lambda tensors: tensors["labels"].__setitem__(0, 1 - tensors["labels"][0]))
    seal(run)
    assert_rejected(verify(run), "objective is ")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros(17, dtype=np.int64), "the labels are none for cross_entropy with outputs (18, 2)"),
        (np.full(18, 2), "the labels are none"),
        (np.full(18, -1), "the labels are none"),
        (np.zeros(18), "the labels are none"),
        (np.zeros((18, 2), dtype=np.int64), "the labels are none"),
    ],
    ids=str,
)
def test_labels_that_are_none_are_rejected(run: Path, labels: NDArray[Any], reason: str) -> None:
    tamper_tensors(run, lambda tensors: tensors.update(labels=labels))
    seal(run)
    result = verify(run)
    assert_rejected(result, reason)
    assert result.recomputed == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: np.full_like(w, np.nan), "are not finite"),
        (lambda w: np.full_like(w, np.inf), "are not finite"),
        (lambda w: w[:-1], "which do not fit the store"),
        (lambda w: np.zeros((len(w), 7)), "which do not fit the store"),
        (lambda w: w.ravel(), "which do not fit the store"),
    ],
)
@pytest.mark.parametrize("part", ["u", "v"])
def test_factors_that_are_none_are_rejected(
    run: Path, part: str, change: Callable[[NDArray[Any]], NDArray[Any]], reason: str
) -> None:
    def spoil(tensors: dict[str, NDArray[Any]]) -> None:
        name = next(key for key in tensors if key.endswith(f"/{part}") and tensors[key].size)
        tensors[name] = change(tensors[name])

    tamper_tensors(run, spoil)
    seal(run)
    assert_rejected(verify(run), reason)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Stores of the same network on other sentences, by their number."""
    stores = {}
    for n in (24, 32):
        folder = tmp_path_factory.mktemp("other")
        write_sentences(folder / "data.csv", n, seed=1)
        record = fit(small_settings(folder), folder / "run")
        stores[record["data"]["n_train"]] = Path(record["tangent"]["store"])
    return stores


def test_the_store_of_other_data_is_rejected(run: Path, elsewhere: dict[int, Path]) -> None:
    assert set(elsewhere) == {18, 24}
    assert_rejected(verify(run, elsewhere[18]), "the run was made on the tangent", "objective is ")
    assert_rejected(verify(run, elsewhere[24]), "the run was made on the tangent", "the labels are none")


def test_a_store_of_other_layers_cannot_be_used(run: Path, tmp_path: Path) -> None:
    write_store(random_problem(), tmp_path / "store")
    with pytest.raises(
        InputError, match=r"expected the same layers: name the store of this run with --store"
    ):
        verify(run, tmp_path / "store")


@pytest.fixture
def store(run: Path, tmp_path: Path) -> Path:
    """A copy of the run's store to damage."""
    held = Path(read(run / "run.json")["tangent"]["store"])
    return Path(shutil.copytree(held, tmp_path / "store"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


STORE_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (lambda s: flip(s / "shard-000-00000.safetensors"), "does not match its checksum"),
    "truncated": (
        lambda s: (s / "shard-000-00000.safetensors").write_bytes(
            (s / "shard-000-00000.safetensors").read_bytes()[:99]
        ),
        "does not match its checksum",
    ),
    "no shard": (lambda s: (s / "shard-000-00000.safetensors").unlink(), "is missing or does not match"),
    "no manifest": (lambda s: (s / "manifest.json").unlink(), r"manifest.json, which cannot be read"),
    "no json": (lambda s: (s / "manifest.json").write_text("{"), r"manifest.json, which cannot be read"),
    "a list": (lambda s: (s / "manifest.json").write_text("[]"), r"manifest.json, which cannot be read"),
    "no shards": (lambda s: rewrite(s / "manifest.json", lambda m: m.pop("shards")), "damaged store"),
    "none listed": (lambda s: rewrite(s / "manifest.json", lambda m: m.update(shards=[])), "damaged store"),
    "another identity": (
        lambda s: rewrite(s / "manifest.json", lambda m: m["identity"].update(model="other")),
        "its key is not that of its identity",
    ),
}


@pytest.mark.parametrize("damage", STORE_DAMAGES)
def test_a_damaged_store_is_told_with_the_remedy(run: Path, store: Path, damage: str) -> None:
    assert verify(run, store).valid
    spoil, message = STORE_DAMAGES[damage]
    spoil(store)
    with pytest.raises(InputError, match=rf"{message}.*: name the folder of the run's tangent with --store"):
        verify(run, store)


def change_shard(store: Path, change: Callable[[dict[str, NDArray[Any]]], object]) -> None:
    """Alter a shard as someone would who covers their tracks."""
    shard = store / "shard-000-00000.safetensors"
    tensors = load_file(shard)
    change(tensors)
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, shard)
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    rewrite(store / "manifest.json", lambda manifest: manifest["shards"][0].update(sha256=digest))


def part_of(tensors: dict[str, NDArray[Any]], part: str) -> str:
    return next(key for key in tensors if key.endswith(f"/{part}"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["index"].__setitem__(0, t["index"][1]), "do not hold every example once"),
        (lambda t: t["index"].__setitem__(0, 99), "do not hold every example once"),
        (lambda t: t.update(index=t["index"][1:]), "."),
        (lambda t: t[part_of(t, "counts")].__setitem__(0, 7), "are not those of its examples"),
        (lambda t: t.update({part_of(t, "g"): t[part_of(t, "g")][1:]}), "."),
        (lambda t: t.update({part_of(t, "x"): t[part_of(t, "x")][:, 1:]}), "are not those of a matrix"),
        (lambda t: t.pop(part_of(t, "x")), "."),
    ],
)
def test_a_shard_whose_parts_do_not_fit_together_is_told(
    run: Path, store: Path, change: Callable[[dict[str, NDArray[Any]]], object], message: str
) -> None:
    change_shard(store, change)
    with pytest.raises(InputError, match=rf"got a damaged store at .*{message}.*--store"):
        verify(run, store)


def test_a_store_of_another_format_is_told(run: Path, store: Path) -> None:
    def older(manifest: dict[str, Any]) -> None:
        manifest["identity"]["format"] = 1
        text = json.dumps(manifest["identity"], sort_keys=True)
        manifest["key"] = hashlib.sha256(text.encode()).hexdigest()[:32]

    rewrite(store / "manifest.json", older)
    with pytest.raises(InputError, match=r"its format is 1 and not 3.*--store"):
        verify(run, store)


def test_an_altered_shard_with_a_new_checksum_is_rejected(run: Path, store: Path) -> None:
    change_shard(store, lambda tensors: tensors["f0"].__setitem__((0, 0), tensors["f0"][0, 0] + 0.5))
    assert_rejected(verify(run, store), "objective is ")


@pytest.mark.parametrize("part", ["g", "x"])
def test_an_altered_row_with_a_new_checksum_is_rejected(run: Path, store: Path, part: str) -> None:
    change_shard(store, lambda t: t.update({part_of(t, part): 1.1 * t[part_of(t, part)]}))
    assert_rejected(verify(run, store), " anew")


@pytest.mark.parametrize("name", ["certificate.json", "solution.safetensors", "run.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "a folder"])
def test_a_missing_or_unreadable_file_is_told_with_the_remedy(run: Path, name: str, damage: str) -> None:
    (run / name).unlink()
    if damage == "a folder":
        (run / name).mkdir()
    elif damage != "missing":
        (run / name).write_bytes(b"" if damage == "empty" else b"\x80\x00garbage")
    with pytest.raises(InputError, match=rf"{name}, which cannot be read .*, expected .*: "):
        verify(run)


def test_a_folder_that_is_no_run_is_told() -> None:
    with pytest.raises(InputError, match=r"certificate.json, which cannot be read \(FileNotFoundError\)"):
        verify("nowhere")


@pytest.mark.parametrize("section", ["configuration", "tangent", "runs"])
def test_a_record_that_lacks_a_section_is_told(run: Path, section: str) -> None:
    rewrite(run / "run.json", lambda record: record.pop(section))
    with pytest.raises(
        InputError, match=rf"lacks what a check needs \(KeyError: '{section}'\).*: run fit again"
    ):
        verify(run)


@pytest.mark.parametrize("lam", [-0.1, "0.1", None, float("nan"), True])
def test_a_record_whose_lambda_is_no_number_is_told(run: Path, lam: Any) -> None:
    rewrite(run / "run.json", lambda record: record["configuration"].update(lam=lam))
    with pytest.raises(InputError, match="is no number of at least 0"):
        verify(run)


def test_an_answer_that_the_record_does_not_list_is_told(run: Path) -> None:
    shutil.copytree(run, run / "lora-r9", ignore=shutil.ignore_patterns("run.json"))
    with pytest.raises(InputError, match=r"does not list among its runs, expected the folder of a run"):
        verify(run / "lora-r9")


def test_an_answer_without_labels_is_told(run: Path) -> None:
    tamper_tensors(run, lambda tensors: tensors.pop("labels"))
    with pytest.raises(InputError, match=r"solution.safetensors, which cannot be read \(KeyError\)"):
        verify(run)


def rounded(problem: Problem) -> Problem:
    """Return the problem with its Jacobian and outputs as float32 holds them, as a store does."""
    jacobian = problem.jacobian.to(torch.float32).to(torch.float64)
    return Problem(jacobian, problem.f0.float().double(), problem.y, problem.loss, problem.lam)


def write_store(problem: Problem, folder: Path) -> Tangent:
    targets = tuple(Target(name, name, shape) for name, shape in problem.jacobian.shapes.items())
    identity = {
        "format": FORMAT,
        "n_examples": problem.jacobian.n_examples,
        "centred": isinstance(problem.jacobian, CentredJacobian),
        "made": "by hand",
        "targets": json.loads(json.dumps([asdict(target) for target in targets])),
    }
    tangent = Tangent(problem.f0.float(), problem.jacobian.to(torch.float32), targets, identity)
    save_tangent(tangent, folder)
    return tangent


def write_by_hand(folder: Path, problem: Problem, factors: Factors, tolerance: float = 1e-6) -> Certificate:
    """Write the files that a run of any loss would leave, as far as verification reads them."""
    tangent = write_store(problem, folder / "store")
    run = folder / "run"
    run.mkdir()
    certificate = certify(problem, factors, tolerance)
    (run / "certificate.json").write_text(json.dumps(asdict(certificate)))
    tensors = {"labels": problem.y}
    for name, (u, v) in factors.items():
        tensors |= {f"{name}/u": u.contiguous(), f"{name}/v": v.contiguous()}
    save_torch(tensors, run / "solution.safetensors")
    record = {
        "configuration": {"lam": problem.lam, "loss": problem.loss.name, "tolerance": tolerance},
        "tangent": {"key": tangent.key, "store": str(folder / "store")},
        "runs": [{"folder": "."} | asdict(certificate)],
    }
    (run / "run.json").write_text(json.dumps(record))
    seal(run)
    return certificate


def random_answer(problem: Problem, rank: int) -> Factors:
    return {
        name: (torch.randn(m, rank, dtype=torch.float64), torch.randn(n, rank, dtype=torch.float64))
        for name, (m, n) in problem.jacobian.shapes.items()
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("loss", LOSSES)
def test_the_second_computation_agrees_with_the_first(tmp_path: Path, loss: str, seed: int) -> None:
    problem = rounded(random_problem(seed, loss, lam=0.05 * (seed + 1)))
    if seed >= 2:  # a layer that does not act on one example, or on none
        layers = dict(problem.jacobian.layers)
        rows = layers["layer.0"]
        silent = rows.example == 2 if seed == 2 else torch.ones_like(rows.example, dtype=torch.bool)
        counts = torch.bincount(rows.example[~silent], minlength=8)
        layers["layer.0"] = LayerRows(rows.x[~silent], rows.g[~silent], counts)
        problem = Problem(Jacobian(layers), problem.f0, problem.y, problem.loss, problem.lam)
    certificate = write_by_hand(tmp_path, problem, random_answer(problem, seed))
    answer = read_answer(tmp_path / "run" / "solution.safetensors")
    ours = recompute(read_store(tmp_path / "store"), answer, loss, problem.lam, 1e-6)
    theirs = asdict(certificate)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if isinstance(value, float):
            assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-9 if name != "rounding" else 0)
        elif name == "spectral_norms":
            assert ours[name] == pytest.approx(value, rel=1e-9)
        else:
            assert ours[name] == value
    result = verify(tmp_path / "run")
    assert result.valid, result.sentence()
    assert not result.certified
    assert result.sentence().startswith("Valid, but not a global optimum: the gap ")


def in_bands(rows: LayerRows) -> LayerRows:
    """Return rows whose output-gradients have two columns each that are not zero."""
    g, width = torch.zeros_like(rows.g), rows.g.shape[2]
    for r in range(len(g)):
        columns = slice(r % (width - 1), r % (width - 1) + 2)
        g[r, :, columns] = rows.g[r, :, columns]
    return replace(rows, g=g)


@pytest.mark.parametrize("shard_bytes", [1, 1000, 2**27])
@pytest.mark.parametrize("loss", LOSSES)
def test_shards_and_bands_change_no_number(
    tmp_path: Path, loss: str, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "SHARD_BYTES", shard_bytes)
    problem = rounded(random_problem(2, loss, lam=0.1))
    layers = dict(problem.jacobian.layers)
    layers["layer.1"] = in_bands(layers["layer.1"])
    problem = Problem(Jacobian(layers), problem.f0, problem.y, problem.loss, problem.lam)
    certificate = write_by_hand(tmp_path, problem, random_answer(problem, 2))
    shards = sorted((tmp_path / "store").glob("shard-*"))
    assert len(shards) == 8 if shard_bytes == 1 else 1 < len(shards) < 8 if shard_bytes == 1000 else shards
    assert any("layer.1/start" in load_file(shard) for shard in shards)
    result = verify(tmp_path / "run")
    assert result.valid, result.sentence()
    assert result.recomputed["constraints"] == certificate.constraints
    assert result.recomputed["rounding"] == pytest.approx(certificate.rounding, rel=1e-9)


@pytest.mark.parametrize("outputs", [2, 3, 5])
def test_the_second_computation_agrees_where_outputs_are_centred(tmp_path: Path, outputs: int) -> None:
    contrasts = random_problem(3, "squared", n_outputs=outputs - 1).jacobian
    jacobian, labels = CentredJacobian(contrasts), torch.arange(contrasts.n_examples) % outputs
    given = Problem(jacobian, torch.randn(len(labels), outputs), labels, CrossEntropy(), 0.1)
    problem = rounded(given)
    certificate = write_by_hand(tmp_path, problem, random_answer(problem, 2))
    result = verify(tmp_path / "run")
    assert result.valid, result.sentence()
    # to the last digits, also what counts rows and bounds rounding
    assert result.recomputed["objective"] == pytest.approx(certificate.objective, rel=1e-12)
    assert result.recomputed["constraints"] == certificate.constraints
    assert result.recomputed["rounding"] == pytest.approx(certificate.rounding, rel=1e-9)
    whole = Problem(problem.rows, problem.f0, labels, CrossEntropy(), 0.1)
    same = certify(whole, random_answer(problem, 0))
    assert same.gap == pytest.approx(certify(problem, random_answer(problem, 0)).gap, rel=1e-12)


def layer_of(x: NDArray[Any], g: NDArray[Any], counts: NDArray[Any]) -> Layer:
    """Return rows that were stored as they are."""
    return Layer(x, g, counts, np.linalg.norm(g, axis=2) * np.linalg.norm(x, axis=1)[:, None])


def test_no_more_than_the_shards_in_use_are_in_memory() -> None:
    alive: set[int] = set()
    most = 0

    def shard_of(number: int, rows: int) -> Shard:
        nonlocal most
        layer = layer_of(np.ones((rows, 2)), np.ones((rows, 1, 3)), np.ones(rows, dtype=np.int64))
        shard = Shard(np.arange(rows) + number * rows, {"layer": layer})
        alive.add(number)
        weakref.finalize(shard, alive.discard, number)
        most = max(most, len(alive))
        return shard

    for rows, expected in ((1100, 1), (10, 2)):  # too many examples for a kernel, and few enough
        most, n = 0, 4 * rows
        readers = [partial(shard_of, number, rows) for number in range(4)]
        tangent = Store(np.zeros((n, 1)), {"layer": (3, 2)}, readers, "key")
        answer = Answer({"layer": (np.ones((3, 1)), np.ones((2, 1)))}, np.zeros((n, 1)))
        assert recompute(tangent, answer, "squared", 1.0, 1e-6)["objective"] > 0
        assert most == expected
        assert not alive


@pytest.mark.parametrize("loss", LOSSES)
def test_the_optimum_of_every_loss_is_certified_and_its_neighbours_are_not(tmp_path: Path, loss: str) -> None:
    problem = rounded(random_problem(1, loss, lam=0.2))
    factors = Certified().solve(problem).factors
    write_by_hand(tmp_path, problem, factors)
    assert verify(tmp_path / "run").certified
    near = tmp_path / "near"
    near.mkdir()
    write_by_hand(near, problem, {name: (1.01 * u, v) for name, (u, v) in factors.items()})
    result = verify(near / "run")
    assert result.valid
    assert not result.certified


@pytest.mark.parametrize(("labels", "fits"), [([1, -1], True), ([1, 0], False), ([[1], [-1]], False)])
def test_labels_of_the_logistic_loss(tmp_path: Path, labels: list[Any], fits: bool) -> None:
    problem = rounded(random_problem(1, "logistic", n_examples=2))
    write_by_hand(tmp_path, problem, problem.zero())
    tamper_tensors(tmp_path / "run", lambda tensors: tensors.update(labels=np.array(labels)))
    seal(tmp_path / "run")
    assert ("the labels are none" in verify(tmp_path / "run").sentence()) is not fits


def test_an_eigenvalue_at_the_border_of_rank_may_count_or_not() -> None:
    cosine = 1 - 2.0002e-11  # the eigenvalues of two unit rows are 1 + cosine and 1 − cosine
    x = np.array([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]])
    layer = layer_of(x, np.ones((2, 1, 1)), np.array([1, 1]))
    tangent = Store(
        np.zeros((2, 1)), {"layer": (1, 2)}, [lambda: Shard(np.arange(2), {"layer": layer})], "key"
    )
    answer = Answer({"layer": (np.zeros((1, 0)), np.zeros((2, 0)))}, np.zeros((2, 1)))

    def counted(claimed: object) -> Any:
        return recompute(tangent, answer, "squared", 1.0, 1e-6, claimed)["constraints"]

    assert [counted(claimed) for claimed in (1, 2, 3, 0, None, True, 1.0)] == [1, 2, 2, 2, 2, 2, 2]


def test_a_problem_too_large_for_its_kernel_has_the_bound_as_its_constraints() -> None:
    n = 4097
    layer = layer_of(np.ones((n, 1)), np.ones((n, 1, 1)), np.ones(n, dtype=np.int64))
    tangent = Store(
        np.zeros((n, 1)), {"layer": (1, 1)}, [lambda: Shard(np.arange(n), {"layer": layer})], "key"
    )
    answer = Answer({"layer": (np.zeros((1, 0)), np.zeros((1, 0)))}, np.zeros((n, 1)))
    rows = LayerRows(torch.ones(n, 1), torch.ones(n, 1, 1), torch.ones(n, dtype=torch.long))
    problem = Problem(Jacobian({"layer": rows}), torch.zeros(n, 1), torch.zeros(n, 1), Squared(), 1.0)
    assert recompute(tangent, answer, "squared", 1.0, 1e-6)["constraints"] == n == problem.constraints


def test_an_unknown_loss_is_told() -> None:
    tangent = Store(np.zeros((1, 1)), {}, [], "key")
    with pytest.raises(InputError, match="got the loss 'hinge', expected cross_entropy, logistic or squared"):
        recompute(tangent, Answer({}, np.zeros((1, 1))), "hinge", 1.0, 1e-6)


def test_verification_imports_neither_torch_nor_any_other_heavy_library(original: Path) -> None:
    code = (
        "import sys; from tangentlora.cli import main; status = main(['verify', sys.argv[1]]); "
        "print([name for name in sys.argv[2:] if name in sys.modules]); sys.exit(status)"
    )
    heavy = ["torch", "transformers", "peft", "datasets", "matplotlib", "scipy", "jaxtyping"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(original), *heavy], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    verdict, loaded = done.stdout.splitlines()
    assert verdict.startswith("Valid: ")
    assert loaded == "[]"
