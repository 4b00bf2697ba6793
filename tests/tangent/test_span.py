"""Restriction to the span changes the coordinates and nothing else."""

from __future__ import annotations

import pytest
import torch

from random_jacobians import random_factors, random_jacobian
from tangentlora.blocks import multiply
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.span import restrict, whole, widen


@pytest.fixture(params=range(8))
def jacobian(request: pytest.FixtureRequest, device: torch.device) -> Jacobian:
    return random_jacobian(request.param, device)


def test_the_restricted_jacobian_is_the_same_map(jacobian: Jacobian) -> None:
    reduced, span = restrict(jacobian)
    inner = random_factors(reduced, (2, 1, 0))
    outputs = reduced.at(inner).forward()
    torch.testing.assert_close(jacobian.at(span.lift(inner)).forward(), outputs)
    torch.testing.assert_close(jacobian.forward(multiply(span.lift(inner))), outputs)
    torch.testing.assert_close(reduced.gram(), jacobian.gram())


def test_lowering_projects_keeps_all_outputs_and_cannot_raise_the_nuclear_norm(jacobian: Jacobian) -> None:
    reduced, span = restrict(jacobian)
    outer = random_factors(jacobian, (2, 1, 3))
    lowered = span.lower(outer)
    torch.testing.assert_close(reduced.at(lowered).forward(), jacobian.at(outer).forward())
    for name, delta in multiply(outer).items():
        norm = torch.linalg.matrix_norm(multiply(lowered)[name], "nuc") if delta.numel() else 0.0
        assert norm <= torch.linalg.matrix_norm(delta, "nuc") + 1e-12
    again = span.lower(span.lift(lowered))
    for name, (u, v) in lowered.items():
        torch.testing.assert_close(again[name], (u, v))


def test_a_side_is_restricted_where_its_vectors_are_fewer_than_its_dimension(device: torch.device) -> None:
    counts = torch.tensor([2, 0, 1], device=device)
    x, g = torch.randn(3, 20, device=device), torch.randn(3, 2, 6, device=device)
    reduced, span = restrict(Jacobian({"t": LayerRows(x, g, counts)}))
    assert reduced.shapes == {"t": (6, 3)}
    assert span.columns["t"] is None
    basis = span.rows["t"]
    assert basis is not None
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, device=device))


def test_dependent_vectors_and_no_vectors_at_all_lose_nothing() -> None:
    x = torch.randn(1, 9, dtype=torch.float64).repeat(3, 1)
    g = torch.randn(3, 1, 8, dtype=torch.float64)
    jacobian = Jacobian({"t": LayerRows(x, g, torch.tensor([1, 2]))})
    torch.testing.assert_close(restrict(jacobian)[0].gram(), jacobian.gram())
    empty = Jacobian({"t": LayerRows(x[:0], g[:0], torch.tensor([0, 0]))})
    reduced, span = restrict(empty)
    assert reduced.shapes == {"t": (0, 0)}
    u, v = span.lift({"t": (x.new_zeros(0, 2), x.new_zeros(0, 2))})["t"]
    assert u.shape == (8, 2)
    assert v.shape == (9, 2)
    assert not u.any()


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_the_wider_span_holds_the_start_and_the_jacobian_is_the_same_map(rank: int) -> None:
    counts = torch.tensor([2, 1, 2])
    x, g = torch.randn(5, 14, dtype=torch.float64), torch.randn(5, 1, 8, dtype=torch.float64)
    jacobian = Jacobian({"t": LayerRows(x, g, counts), "full": LayerRows(x[:, :4], g, counts)})
    reduced, span = restrict(jacobian)
    v = {"t": torch.randn(14, rank, dtype=torch.float64), "full": torch.randn(4, rank, dtype=torch.float64)}
    inner, wide = widen(reduced, span, v)
    q = min(14, 5 + rank)
    assert inner.shapes == {"t": (5, q), "full": (5, 4)}
    basis = wide.rows["t"]
    assert basis is not None
    assert wide.rows["full"] is None
    torch.testing.assert_close(basis.T @ basis, torch.eye(q, dtype=torch.float64))
    assert not inner.layers["t"].x[:, 5:].any()
    torch.testing.assert_close(inner.layers["t"].x @ basis.T, x)
    start = {name: (torch.zeros(8, rank, dtype=torch.float64), w) for name, w in v.items()}
    torch.testing.assert_close(wide.lift(wide.lower(start)), start)
    torch.testing.assert_close(inner.gram(), jacobian.gram())


def test_the_whole_span_changes_nothing() -> None:
    jacobian = random_jacobian(2)
    factors = random_factors(jacobian)
    for same in (whole(jacobian).lift(factors), whole(jacobian).lower(factors)):
        torch.testing.assert_close(same, factors, rtol=0, atol=0)
