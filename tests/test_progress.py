from __future__ import annotations

import sys

import pytest

from tangentlora.progress import bar


@pytest.mark.parametrize(("terminal", "seconds"), [(True, 0.1), (False, 15.0)])
def test_a_log_is_not_flooded(monkeypatch: pytest.MonkeyPatch, terminal: bool, seconds: float) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with bar(10, "working", "step", True) as shown:
        assert shown.mininterval == seconds
        assert shown.maxinterval >= seconds


def test_a_log_shows_the_beginning_and_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(1000, "working", "step", True) as shown:
        for _ in range(1000):
            shown.update()
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.replace("\n", "\r").split("\r") if line]
    assert len(lines) == 2
    assert "working" in lines[0]
    assert "1000/1000" in lines[-1]


def test_where_it_is_not_wanted_there_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(10, "working", "step", False) as shown:
        shown.update(3)
        assert shown.n == 0
    assert capsys.readouterr() == ("", "")
