"""The NTK regime of a real tiny network: linear for small updates, not for large ones."""

from __future__ import annotations

import json

import pytest
import torch

from small_studies import small_plan
from tangentlora.blocks import Factors
from tangentlora.models.update import updated
from tangentlora.studies.prepare import Prepared, prepare
from tangentlora.studies.regime import regime
from tangentlora.theory.regime import Verdict


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(small_plan(tmp_path_factory.mktemp("regime")).cases[0].settings)


def factors(prepared: Prepared, size: float) -> Factors:
    generator = torch.Generator().manual_seed(0)
    return {
        name: (size * torch.randn(m, 2, generator=generator), torch.randn(n, 2, generator=generator))
        for name, (m, n) in prepared.problem.jacobian.shapes.items()
    }


def test_a_small_update_is_in_the_regime_and_a_large_one_is_not(prepared: Prepared) -> None:
    small = regime(prepared, factors(prepared, 1e-3), (0.5, 1.0))
    assert small.verdict is Verdict.LINEAR
    large = regime(prepared, factors(prepared, 10.0), (1.0,))
    assert large.verdict is Verdict.OUTSIDE
    assert large.regime.drift > small.regime.drift > 0
    assert len(small.regime.train) == len(small.regime.held_out) == 2


def test_the_numbers_are_those_of_the_network(prepared: Prepared) -> None:
    delta = factors(prepared, 0.3)
    found = regime(prepared, delta, (0.0, 1.0))
    before = prepared.network.predict(prepared.splits.train.inputs)
    with updated(prepared.network, prepared.targets, delta):
        after = prepared.network.predict(prepared.splits.train.inputs)
    z = prepared.problem.outputs({name: (u.double(), v.double()) for name, (u, v) in delta.items()})
    start, end = found.regime.train
    assert start.error == 0
    assert start.real_loss == pytest.approx(start.linear_loss, abs=1e-6)
    centred = [outputs - outputs.mean(1, keepdim=True) for outputs in (before, after, z)]
    expected = (centred[1] - centred[2]).norm() / (centred[2] - centred[0]).norm()
    assert end.error == pytest.approx(float(expected), rel=1e-3)
    labels = torch.tensor(prepared.splits.train.labels)
    real = torch.nn.functional.cross_entropy(after.double(), labels)
    assert end.real_loss == pytest.approx(float(real), rel=1e-5)
    # the weights are back in place
    torch.testing.assert_close(prepared.network.predict(prepared.splits.train.inputs), before)
    record = json.loads(json.dumps(found.record()))
    assert record["verdict"] == found.verdict.name
    assert record["regime"]["train"][1]["error"] == end.error
    assert set(record["kernel_ridge"]) == {"train_accuracy", "train_loss", "test_accuracy", "test_loss"}
    assert record["kernel_ridge"]["train_accuracy"] >= 0.5
