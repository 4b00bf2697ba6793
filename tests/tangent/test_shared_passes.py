"""Passes over the network that several processes share: each makes its part, and all have the results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from network_steps import examples, linearised, predicted, tiny
from process_groups import run_together
from tangentlora.tangent.linearize import linearize
from tangentlora.tangent.store import load_tangent


@pytest.mark.parametrize(("n", "passes"), [(9, [2, 2, 1]), (2, [1, 0, 0])])
def test_outputs_are_those_of_one_process(tmp_path: Path, n: int, passes: list[int]) -> None:
    expected = tiny().predict(examples(n), 2)
    found = run_together(3, tmp_path, predicted, n)
    for z, _ in found:
        assert torch.equal(z, expected)
    assert [made for _, made in found] == passes


@pytest.mark.parametrize(("n", "passes"), [(9, [3, 2, 1]), (2, [2, 0, 0])])
def test_a_store_is_that_of_one_process(tmp_path: Path, n: int, passes: list[int]) -> None:
    """Process 0 makes one pass more, to prove the Jacobian of one example."""
    network = tiny()
    one = linearize(network, examples(n), network.targets(("query",)), batch_size=2, store=tmp_path / "one")
    found = run_together(3, tmp_path, linearised, n, tmp_path / "three", 0.0)
    assert found == [("", made) for made in passes]
    (store,) = (tmp_path / "three").iterdir()
    three = load_tangent(store)
    assert (three.key, store.name) == (one.key, one.key)
    assert torch.equal(three.f0, one.f0)
    for part in ("x", "g", "counts"):
        ours, theirs = (getattr(t.jacobian.layers["query"], part) for t in (three, one))  # type: ignore[attr-defined]
        assert torch.equal(ours, theirs)


def test_a_network_that_process_0_refuses_ends_all_and_leaves_nothing(tmp_path: Path) -> None:
    found = run_together(3, tmp_path, linearised, 9, tmp_path / "store", 0.5)
    assert found[0][0].startswith("got outputs that differ by ")
    for said, _ in found[1:]:
        assert said.startswith("got no answer from another process")
    assert not list((tmp_path / "store").iterdir())
