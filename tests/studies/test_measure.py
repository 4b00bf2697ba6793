"""Scores at logged epochs, against the whole Jacobian and the real network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from small_studies import small_plan
from tangentlora.studies.measure import linearised_sets, real_scores
from tangentlora.studies.prepare import Prepared, prepare, scores


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    case = small_plan(tmp_path_factory.mktemp("measure")).cases[0]
    return prepare(case.settings, dev=True)


def factors(prepared: Prepared, size: float) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: (size * torch.randn(m, 2, generator=generator), torch.randn(n, 2, generator=generator))
        for name, (m, n) in prepared.problem.jacobian.shapes.items()
    }


def test_every_set_is_scored_as_the_whole_jacobian_would(prepared: Prepared) -> None:
    delta = factors(prepared, 0.1)
    sets = {part.which: part for part in linearised_sets(prepared)}
    assert list(sets) == ["train", "dev", "test"]
    tangents = {"train": prepared.train, "dev": prepared.dev, "test": prepared.test}
    examples = {"train": prepared.splits.train, "dev": prepared.splits.dev, "test": prepared.splits.test}
    for which, part in sets.items():
        tangent, labelled = tangents[which], examples[which]
        assert tangent is not None
        assert labelled is not None
        change = tangent.jacobian.forward({name: u @ v.T for name, (u, v) in delta.items()})
        expected = scores(tangent.f0 + change, labelled.labels, which)
        assert part.scores(delta) == pytest.approx(expected, abs=1e-5)
        alone = scores(change, labelled.labels, which)
        assert part.scores(delta, pretrained=False) == pytest.approx(alone, abs=1e-5)
        assert expected != pytest.approx(alone, abs=1e-3)
        shifted = tangent.f0 - tangent.f0.mean(1, keepdim=True)
        torch.testing.assert_close(part.outputs({}), shifted, rtol=1e-5, atol=1e-5)


def test_the_real_network_agrees_where_the_update_is_small(prepared: Prepared) -> None:
    delta = factors(prepared, 1e-4)
    linearised: dict[str, float] = {}
    for part in linearised_sets(prepared):
        linearised |= part.scores(delta)
    real = real_scores(prepared, delta)
    assert set(real) == set(linearised)
    losses = [key for key in real if key.endswith("_loss")]
    assert [real[key] for key in losses] == pytest.approx([linearised[key] for key in losses], abs=1e-4)
    large = real_scores(prepared, factors(prepared, 3.0))
    assert abs(large["test_loss"] - real["test_loss"]) > 1e-3


def test_without_dev_and_test_sets_only_training_is_scored(tmp_path: Path) -> None:
    case = small_plan(tmp_path).cases[0]
    assert prepare(case.settings).dev is None
    assert [part.which for part in linearised_sets(prepare(case.settings))] == ["train", "test"]
