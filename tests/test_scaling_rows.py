"""The benchmarks' planted rows: bands, pieces that add up to the whole, and exponents that can say no."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tangentlora.tangent.jacobian import Jacobian, concatenate

HEADS = {"query": 1, "value": 3}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.setattr(sys, "path", [*sys.path, str(benchmarks)])
    return {name: __import__(name) for name in ("planted_rows", "certified_scaling", "larger_than_memory")}


def test_pieces_are_the_rows_of_the_whole(scripts: dict[str, ModuleType]) -> None:
    rows = scripts["planted_rows"]
    parts = [Jacobian(layers) for layers in rows.pieces(70, 3, HEADS, 0, side=12)]
    whole, joined = rows.in_memory(70, 3, HEADS, 0, side=12), concatenate(parts)
    assert len(parts) == 2
    for name, layer in whole.layers.items():
        assert torch.equal(layer.x, joined.layers[name].x)
        assert torch.equal(layer.g, joined.layers[name].g)
        assert torch.equal(layer.counts, joined.layers[name].counts)


def test_a_head_keeps_to_its_own_columns(scripts: dict[str, ModuleType]) -> None:
    g = scripts["planted_rows"].in_memory(5, 2, HEADS, 0, side=12).layers["value"].g
    used = (g.reshape(5, 3, 2, 3, 4) != 0).all(4).all(2).all(0)
    assert torch.equal(used, torch.eye(3, dtype=torch.bool))


def test_at_a_share_of_one_zero_is_optimal_and_below_it_is_not(scripts: dict[str, ModuleType]) -> None:
    rows = scripts["planted_rows"]
    jacobian = rows.in_memory(20, 3, HEADS, 0, side=12)
    f0, y = rows.outputs_at_zero(20, 3, 0), rows.labels(jacobian, 0)
    assert set(y.tolist()) == {0, 1, 2}
    assert rows.posed(jacobian, f0, y, 1.001).gap({}) < 1e-2
    assert rows.posed(jacobian, f0, y, 0.1).gap({}) > 1e-2


def test_an_exponent_above_the_target_is_claimed_as_it_is(scripts: dict[str, ModuleType]) -> None:
    scaling = scripts["certified_scaling"]
    points = [
        {"N": n, "processor_seconds": 1e-3 * n**1.5, "predicted_bytes": 9, "peak_bytes": 10}
        for n in (8, 64, 512)
    ]
    exponent, least, largest = scaling.claims_of({"N": points})
    assert exponent["ratio"]["median"] == pytest.approx(1.5)
    assert exponent["target"] == 1.1
    assert least["ratio"]["median"] == pytest.approx(0.9)
    assert least["direction"] == "at least"
    assert largest["target"] == 1.5


def test_memory_over_the_limit_is_claimed_as_it_is(scripts: dict[str, ModuleType]) -> None:
    result = {
        "limit_bytes": 4,
        "solved": {"examples": 100, "peak_bytes": 6},
        "streamed": [{"examples": n, "peak_bytes": 2} for n in (10, 20)],
    }
    solved, few, many, grown = scripts["larger_than_memory"].claims(result)
    assert [row["ratio"]["median"] for row in (solved, few, many, grown)] == [1.5, 0.5, 0.5, 1.0]
    assert solved["target"] == 1.0
    assert grown["target"] is None
