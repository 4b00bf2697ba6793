"""Forge run folders in some two hundred ways and see that `verify` accepts none of them.

    PYTHONPATH=tests python campaign/forgeries.py

Two runs are made end to end on a tiny network: one certified, one stopped early. What decides the proof (the
certificate, the problem, the answer, the adapter, the store) is forged with every checksum redone, as by
someone who covers their tracks; every other file of the run without. Two things are trusted, as
docs/certificates.md says, and so not forged here: a store, answer and certificate that are made anew
together, and the pages and logs of whoever also redoes their checksums.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from small_runs import small_settings
from tangentlora.errors import InputError
from tangentlora.studies.fit import fit
from tangentlora.theory.verify import verify

Forge = Callable[[Path], None]
_PLAIN = ("report.html", "README.md", "metrics.jsonl")  # forged without new checksums


def main() -> int:
    """Run every forgery; exit with 1 where one is accepted, or ends in anything but a sentence."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        runs = {
            "certified": folder / "certified",
            "stopped": folder / "stopped",
        }
        fit(small_settings(folder, lam=0.02), runs["certified"])
        fit(small_settings(folder, lam=0.02, solver="sgd", rank=2, epochs=3), runs["stopped"])
        accepted, tried = [], 0
        for name, run in runs.items():
            if not verify(run).valid:
                raise SystemExit(f"the {name} run is not valid before any forgery: {verify(run).sentence()}")
            other = runs["stopped" if name == "certified" else "certified"]
            for what, forge, seal in forgeries(run, other):
                tried += 1
                outcome = attempt(run, forge, seal=seal)
                if outcome is not None:
                    accepted.append(f"{name} run, {what}: {outcome}")
    print(*accepted, sep="\n")
    print(f"forgeries            {tried}")
    print(f"accepted             {len(accepted)}")
    return int(bool(accepted))


def attempt(run: Path, forge: Forge, *, seal: bool) -> str | None:
    """Forge a copy of the run, with its store; return what is wrong with what `verify` says, or None."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(shutil.copytree(run, Path(made) / "run"))
        record = read(folder / "run.json")
        store = shutil.copytree(record["tangent"]["store"], Path(made) / "store" / record["tangent"]["key"])
        digests = {path: digest(path) for path in files(Path(made))}
        forge(folder)
        if seal:
            reseal(Path(made), digests)
        try:
            result = verify(folder, store)
        except InputError:
            return None
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return f"accepted: {result.sentence()}" if result.valid else None


def forgeries(run: Path, other: Path) -> Iterator[tuple[str, Forge, bool]]:
    """Yield what is forged, how, and whether the checksums are redone."""
    for what, forge in certificate_forgeries(read(run / "certificate.json")):
        yield f"certificate: {what}", forge, True
    for what, change in run_forgeries(read(run / "run.json")).items():
        yield f"run.json: {what}", edit_json("run.json", change), True
    for what, change in answer_forgeries(load_file(run / "solution.safetensors")).items():
        yield f"answer: {what}", edit_tensors("solution.safetensors", change), True
    for what, forge in adapter_forgeries(run, other).items():
        yield f"adapter: {what}", forge, True
    for what, forge in store_forgeries().items():
        yield f"store: {what}", forge, True
    for name in _PLAIN:
        yield f"{name}: one byte more", append(name), False
        yield f"{name}: missing", remove(name), False
    for name in ("solution.safetensors", "certificate.json", "run.json", "adapter/adapter_config.json"):
        yield f"{name}: another run's", replace_by(name, other), True
        yield f"{name}: missing", remove(name), True


def certificate_forgeries(certificate: dict[str, Any]) -> Iterator[tuple[str, Forge]]:
    """Yield changes of every field that go beyond what rounding may differ by."""
    for path, value in leaves(certificate):
        for what, wrong in wrong_values(value, certificate["rounding"]):
            name = ".".join(path)
            yield f"{name} {what}", edit_json("certificate.json", lambda c, p=path, w=wrong: put(c, p, w))
        yield f"{'.'.join(path)} left out", edit_json("certificate.json", lambda c, p=path: drop(c, p))
    yield "a field more", edit_json("certificate.json", lambda c: c.update(approved=True))
    yield "a layer more", edit_json("certificate.json", lambda c: c["ranks"].update(more=1))


def wrong_values(value: Any, rounding: float) -> Iterator[tuple[str, Any]]:
    """Yield values that a field may not have instead of this one."""
    if isinstance(value, bool):
        return (yield from [("turned", not value), ("as 1 or 0", int(value))])
    if isinstance(value, str):
        return (yield from [("other", value + "x"), ("empty", "")])
    if isinstance(value, int):
        return (yield from [("one more", value + 1), ("negative", -value - 1), ("as text", str(value))])
    numbers = {
        "a little more": value * (1 + 1e-6),
        "a little less": value * (1 - 1e-6),
        "doubled": 2 * value,
        "zero": 0.0,
        "negative": -value,
        "not a number": float("nan"),
    }
    slack = (1e-3 if value == rounding else 4) * rounding  # two ways of computing it differ by that much
    for what, number in numbers.items():
        if not abs(number - value) <= slack:
            yield what, number
    return None


def run_forgeries(record: dict[str, Any]) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Return changes of run.json that say something else of the problem or of the answer."""
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "λ": lambda r: r["configuration"].update(lam=2 * r["configuration"]["lam"]),
        "λ by a millionth": lambda r: r["configuration"].update(lam=r["configuration"]["lam"] * (1 + 1e-6)),
        "tolerance": lambda r: r["configuration"].update(tolerance=1e-3),
        "tolerance as text": lambda r: r["configuration"].update(tolerance="1e-6"),
        "loss": lambda r: r["configuration"].update(loss="logistic"),
        "key": lambda r: r["tangent"].update(key="0" * 32),
        "a second entry before": lambda r: r["runs"].insert(0, copy.deepcopy(r["runs"][0])),
        "a second entry after": lambda r: r["runs"].append({**copy.deepcopy(r["runs"][0]), "objective": 0.0}),
        "no entry": lambda r: r["runs"].clear(),
    }
    for name in ("objective", "factored_objective", "lower_bound", "gap", "relative_gap"):
        changes[f"{name} of the run"] = lambda r, n=name: r["runs"][0].update({n: r["runs"][0][n] + 1e-3})
    changes["certified of the run"] = lambda r: r["runs"][0].update(certified=not r["runs"][0]["certified"])
    return changes


def answer_forgeries(tensors: dict[str, Any]) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Return changes of the factors and labels."""
    full = [key for key, value in tensors.items() if "/" in key and value.size]
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "a label": lambda t: t["labels"].__setitem__(0, 1 - t["labels"][0]),
        "labels in another order": lambda t: t.update(labels=t["labels"][::-1].copy()),
        "labels as numbers": lambda t: t.update(labels=t["labels"].astype(np.float64)),
        "no labels": lambda t: t.pop("labels"),
        "a layer left out": lambda t: t.pop(full[0]),
    }
    for key in full:
        changes[f"{key} nudged"] = lambda t, k=key: t[k].__setitem__(
            (0, 0), t[k][0, 0] + 1e-4 * abs(t[k]).max()
        )
        changes[f"{key} negated"] = lambda t, k=key: t.update({k: -t[k]})
        changes[f"{key} not a number"] = lambda t, k=key: t[k].__setitem__((0, 0), np.nan)
        changes[f"{key} with a row less"] = lambda t, k=key: t.update({k: t[k][1:]})
    return changes


def adapter_forgeries(run: Path, other: Path) -> dict[str, Forge]:
    """Return changes of the PEFT adapter: of its tensors and of how its configuration reads them."""
    weights, names = (
        "adapter/adapter_model.safetensors",
        list(load_file(run / "adapter/adapter_model.safetensors")),
    )

    def tensors(change: Callable[[dict[str, Any]], Any]) -> Forge:
        return edit_tensors(weights, change)

    def configuration(**new: Any) -> Forge:
        return edit_json("adapter/adapter_config.json", lambda c: c.update(new))

    config = read(run / "adapter/adapter_config.json")
    changes = {
        "another run's": replace_by(weights, other),
        "missing": remove(weights),
        "alpha doubled": edit_json("adapter/adapter_config.json", lambda c: doubled_alpha(c)),
        "rsLoRA": configuration(use_rslora=True),
        "DoRA": configuration(use_dora=True),
        "no target modules": configuration(target_modules=[]),
        "other target modules": configuration(target_modules=["nowhere"]),
        "a bias": configuration(bias="all"),
        "fan in, fan out": configuration(fan_in_fan_out=not config.get("fan_in_fan_out")),
        "a module saved": configuration(modules_to_save=["classifier"]),
        "a tensor more": tensors(lambda t: t.update(more=np.ones((2, 2), np.float32))),
    }
    for key in names:
        changes[f"{key} 1.001 times"] = tensors(lambda t, k=key: t.update({k: t[k] * np.float32(1.001)}))
        changes[f"{key} of zeros"] = tensors(lambda t, k=key: t.update({k: 0 * t[k]}))
        changes[f"{key} left out"] = tensors(lambda t, k=key: t.pop(k))
        changes[f"{key} not a number"] = tensors(lambda t, k=key: t.update({k: np.nan * t[k]}))
        changes[f"{key} under another name"] = tensors(lambda t, k=key: t.update({k + "x": t.pop(k)}))
    return changes


def doubled_alpha(config: dict[str, Any]) -> None:
    """Double the scaling of every layer."""
    config["lora_alpha"] *= 2
    config["alpha_pattern"] = {name: 2 * alpha for name, alpha in config["alpha_pattern"].items()}


def store_forgeries() -> dict[str, Forge]:
    """Return changes of the Jacobian and f0, with the store's own checksums redone."""

    def change(what: Callable[[dict[str, Any]], Any]) -> Forge:
        def forge(folder: Path) -> None:
            for path in sorted((folder.parent / "store").rglob("*.safetensors")):
                held = {key: value.copy() for key, value in load_file(path).items()}
                what(held)
                save_file({key: np.ascontiguousarray(value) for key, value in held.items()}, path)

        return forge

    def scale(by: float, part: str) -> Callable[[dict[str, Any]], Any]:
        def scaled(held: dict[str, Any]) -> None:
            for key, value in held.items():
                if part in key and value.dtype.kind == "f":
                    held[key] = (value * by).astype(value.dtype)

        return scaled

    def spoil(held: dict[str, Any]) -> None:
        for value in held.values():
            if value.dtype.kind == "f" and value.size:
                value.reshape(-1)[0] = np.nan

    def negate(held: dict[str, Any]) -> None:
        for key, value in held.items():
            if value.dtype.kind == "i" and value.size:
                held[key] = -value

    return {
        "everything 1.01 times": change(scale(1.01, "")),
        "everything doubled": change(scale(2.0, "")),
        "f0 1.01 times": change(scale(1.01, "f0")),
        "not numbers": change(spoil),
        "negative counts": change(negate),
    }


def edit_json(name: str, change: Callable[[dict[str, Any]], Any]) -> Forge:
    """Return a forgery that changes a JSON file."""

    def forge(folder: Path) -> None:
        value = read(folder / name)
        change(value)
        (folder / name).write_text(json.dumps(value))

    return forge


def edit_tensors(name: str, change: Callable[[dict[str, Any]], Any]) -> Forge:
    """Return a forgery that changes a safetensors file."""

    def forge(folder: Path) -> None:
        held = {key: value.copy() for key, value in load_file(folder / name).items()}
        change(held)
        save_file({key: np.ascontiguousarray(value) for key, value in held.items()}, folder / name)

    return forge


def append(name: str) -> Forge:
    """Return a forgery that adds a byte to a file."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b" ") and None


def remove(name: str) -> Forge:
    """Return a forgery that takes a file away."""
    return lambda folder: (folder / name).unlink()


def replace_by(name: str, other: Path) -> Forge:
    """Return a forgery that puts the same file of another run in its place."""
    return lambda folder: shutil.copyfile(other / name, folder / name) and None


def reseal(folder: Path, before: dict[Path, str]) -> None:
    """Write the SHA-256 and size of every file as it is now wherever a JSON file holds those from before."""
    owner = {known: path for path, known in before.items()}
    for _ in range(4):  # a checksum of a file that holds checksums
        for path in [path for path in files(folder) if path.suffix == ".json"]:
            try:
                value = read(path)
            except ValueError:
                continue
            new = redone(value, owner)
            if new != value:
                path.write_text(json.dumps(new))
                owner[digest(path)] = path


def redone(value: Any, owner: dict[str, Path]) -> Any:
    """Return a JSON value with every known checksum, and the size beside it, as they are now."""
    if isinstance(value, str) and value in owner and owner[value].exists():
        return digest(owner[value])
    if isinstance(value, list):
        return [redone(item, owner) for item in value]
    if not isinstance(value, dict):
        return value
    known = [owner[item] for item in value.values() if isinstance(item, str) and item in owner]
    new = {key: redone(item, owner) for key, item in value.items()}
    if len(known) == 1 and known[0].exists():
        new |= {key: known[0].stat().st_size for key in ("size", "bytes") if key in new}
    return new


def files(folder: Path) -> list[Path]:
    """Return every file below the folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(path: Path) -> dict[str, Any]:
    """Return a JSON object."""
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value of nested dictionaries with its path."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from leaves(item, (*path, key))


def put(value: dict[str, Any], path: tuple[str, ...], new: Any) -> None:
    """Set the value at a path."""
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def drop(value: dict[str, Any], path: tuple[str, ...]) -> None:
    """Take away the value at a path."""
    for key in path[:-1]:
        value = value[key]
    del value[path[-1]]


if __name__ == "__main__":
    sys.exit(main())
