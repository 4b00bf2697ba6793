"""The profile's timers, its floor and its page, on jobs whose figures are known."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])


def script(name: str) -> ModuleType:
    return __import__(name)


class Clock:
    """Time that passes when it is told to, in place of the module `time`."""

    now = 0.0

    @classmethod
    def perf_counter(cls) -> float:
        return cls.now

    @classmethod
    def sleep(cls, seconds: float) -> None:
        cls.now += seconds


class Work:
    def outer(self) -> str:
        Clock.sleep(2)
        self.inner()
        Clock.sleep(1)
        return "done"

    def inner(self) -> None:
        Clock.sleep(5)

    @cached_property
    def once(self) -> int:
        Clock.sleep(7)
        return 1


class Idle:
    def call(self) -> None: ...


@pytest.fixture
def parts_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = script("timed_parts")
    monkeypatch.setattr(module, "time", Clock)
    return module.timed_parts


def test_parts_do_not_count_twice_and_add_up(parts_of: Any) -> None:
    sites = [(name, Work, name) for name in ("outer", "inner", "once")]
    before = dict(vars(Work))
    work = Work()
    with parts_of([*sites, ("idle", Idle, "call")]) as parts:
        assert work.outer() == "done"
        assert work.once + work.once == 2
        Clock.sleep(11)
    assert dict(vars(Work)) == before
    assert dict(parts) == {"outer": 3, "inner": 5, "once": 7, "idle": 0, "the rest": 11}


def test_a_whole_part_keeps_what_it_calls(parts_of: Any) -> None:
    sites = [("outer", Work, "outer"), ("inner", Work, "inner")]
    with parts_of(sites, frozenset({"outer"})) as parts:
        Work().outer()
    assert dict(parts) == {"outer": 8, "inner": 0, "the rest": 0}


def test_a_part_that_no_longer_exists_is_told() -> None:
    with pytest.raises(KeyError, match="gone"), script("timed_parts").timed_parts([("x", Work, "gone")]):
        raise AssertionError("not reached")


def test_timers_are_taken_away_after_an_error() -> None:
    failing = SimpleNamespace(work=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), script("timed_parts").timed_parts([("x", failing, "work")]):
        failing.work()
    assert not hasattr(failing.work, "__wrapped__")


def test_products_are_counted_by_hand() -> None:
    a, b, v = torch.randn(3, 4), torch.randn(4, 5), torch.randn(4)
    batch = torch.randn(2, 3, 4, dtype=torch.float64)
    with script("floor").Products() as products:
        _ = a @ b
        _ = a @ v
        _ = batch @ batch.mT
        _ = a + 1
    assert products.flops == {"float32": 2 * 3 * 4 * 5 + 2 * 3 * 4, "float64": 2 * 2 * 3 * 4 * 3}
    numbers = (12 + 20 + 15) + (12 + 4 + 3)
    assert products.bytes == 4 * numbers + 8 * (24 + 24 + 18)


def test_rates_are_of_this_machine() -> None:
    floor = script("floor")
    assert floor.gemm_rate(torch.float32) > 1e8
    assert floor.bandwidth(2**20) > 1e8
    assert floor.bandwidth(1) > 1e7
    assert floor.hash_rate() > 1e6


def job(seconds: float, **floors: float) -> dict[str, Any]:
    return {
        "name": "solve",
        "seconds": seconds,
        "parts": {"the rest": 0.1 * seconds, "gradient": 0.9 * seconds, "gap": 0.0},
        "flops": {"float64": 3e9},
        "flops_per_second": {"float64": 6e9},
        "bytes": 10**9,
        "bytes_per_second": 10**10,
        "floor": {"arithmetic": 0.5, "memory": 0.1, "hashing": 0.0} | floors,
    }


@pytest.mark.parametrize(
    ("made_up", "said"),
    [
        (job(0.8), "Bound by the arithmetic of its matrix products: 1.60 times the floor, most of it in"),
        (job(0.8, memory=0.7), "Bound by the memory that its matrix products read and write: 1.14 times"),
        (job(0.8, hashing=0.8), "Bound by the hash of the store: 1.00 times"),
        (
            job(5.0),
            "Bound by “gradient” (90 %): the arithmetic of its matrix products accounts for 10 %",
        ),
    ],
)
def test_what_bounds_a_job_follows_from_its_figures(made_up: dict[str, Any], said: str) -> None:
    page = script("profile_page")
    machine = {"processor": "an abacus", "threads": 1, "torch": "2.13.0"}
    text = page.page({"machine": machine, "repeats": 3, "jobs": [made_up]})
    assert said in text
    assert "Measured on an abacus with one thread, torch 2.13.0, 3 runs each." in text


def test_the_table_has_shares_and_multiples_of_the_floor() -> None:
    lines = script("profile_page").table(job(1.0)).splitlines()
    assert lines[2:] == [
        "| gradient | 900 ms | 90.0 % | 1.80 |",
        "| gap | 0 | 0.0 % | 0.00 |",
        "| the rest | 100 ms | 10.0 % | 0.20 |",
        "| **all** | 1 s | 100.0 % | 2.00 |",
    ]
    assert script("profile_page").floors(job(1.0)) == (
        "Floor: arithmetic 500 ms, memory 100 ms (3 GFLOP in float64 at 6 GFLOP/s; 1 GB touched at 10.0 "
        "GB/s)."
    )


def test_the_floor_takes_the_best_rate_that_was_seen() -> None:
    slow, fast = job(1.0), job(1.0)
    fast["flops_per_second"] = {"float64": 12e9}
    script("profile_jobs").with_arithmetic([slow, fast])
    assert [made["floor"]["arithmetic"] for made in (slow, fast)] == [0.25, 0.25]


def test_every_part_of_a_job_is_a_function_that_exists() -> None:
    jobs = script("profile_jobs")
    for sites in (jobs.LINEARISE, jobs.SOLVE, jobs.EPOCH, jobs.CERTIFY, jobs.VERIFY, jobs.FIT):
        for part, owner, name in sites:
            assert name in vars(owner), f"{part}: {owner} has no {name}"
