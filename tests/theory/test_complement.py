"""The part of a matrix outside given spaces, against dense singular value decompositions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangentlora.theory.complement import complement


def orthonormal(rows: int, k: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, k, dtype=torch.float64)).Q


def outside(M: Tensor, A: Tensor, B: Tensor) -> Tensor:
    m, n = M.shape
    eye_m, eye_n = (torch.eye(size, dtype=torch.float64) for size in (m, n))
    return (eye_m - A @ A.T) @ M @ (eye_n - B @ B.T)


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("shape", [(7, 9), (9, 7), (8, 8), (5, 40), (80, 90), (90, 70)])
def test_values_and_leading_pair_are_those_of_the_dense_matrix(shape: tuple[int, int], k: int) -> None:
    M = torch.randn(*shape, dtype=torch.float64)
    A, B = orthonormal(shape[0], k), orthonormal(shape[1], k)
    found, W = complement(M, A, B), outside(M, A, B)
    assert found.norm == pytest.approx(float(torch.linalg.matrix_norm(M, 2)), rel=1e-12)
    assert found.outside == pytest.approx(float(torch.linalg.matrix_norm(W, 2)), rel=1e-12)
    a, b = found.leading()
    assert float(a.norm()) == pytest.approx(1.0)
    assert float(b.norm()) == pytest.approx(1.0)
    assert float((A.T @ a).norm() + (B.T @ b).norm()) < 1e-12
    assert float(a @ M @ b) == pytest.approx(found.outside, rel=1e-9)


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("shape", [(7, 9), (9, 7), (5, 40), (80, 90), (90, 70)])
def test_values_above_a_threshold_are_counted_as_by_a_dense_decomposition(
    shape: tuple[int, int], k: int
) -> None:
    M = torch.randn(*shape, dtype=torch.float64)
    A, B = orthonormal(shape[0], k), orthonormal(shape[1], k)
    found, values = complement(M, A, B), torch.linalg.svdvals(outside(M, A, B))
    for count in range(len(values) - k):
        between = 0.5 * float(values[count : count + 2].sum())
        assert found.above(between) == count + 1
    assert found.above(found.outside * (1 + 1e-9)) == 0
    # A zero singular value is known to the square root of the unit roundoff, relative to ‖M‖₂.
    assert found.above(0.0) == len(values) - k


def test_a_value_in_a_crowd_is_counted_and_found() -> None:
    m, n = 90, 100
    left, right = orthonormal(m, m), orthonormal(n, m)
    values = torch.ones(m, dtype=torch.float64)
    values[0], values[40:] = 1 + 1e-6, 1 - 1e-6
    found = complement(left * values @ right.T, left[:, :0], right[:, :0])
    assert found.outside == pytest.approx(1 + 1e-6, rel=1e-9)
    assert (found.above(1 + 1e-7), found.above(1 - 1e-7), found.above(0.5)) == (1, 40, m)


def test_without_lanczos_the_dense_decomposition_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.sparse import linalg

    def fails(*_: object, **__: object) -> None:
        raise linalg.ArpackError(-9)

    M, A, B = torch.randn(80, 90, dtype=torch.float64), orthonormal(80, 2), orthonormal(90, 2)
    first = complement(M, A, B)
    monkeypatch.setattr(linalg, "eigsh", fails)
    second = complement(M, A, B)
    assert (second.norm, second.outside) == pytest.approx((first.norm, first.outside), rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 8), (80, 90)])
def test_what_rounding_leaves_of_nothing_counts_as_zero(shape: tuple[int, int]) -> None:
    A, B = orthonormal(shape[0], 2), orthonormal(shape[1], 2)
    inside = 1e3 * A @ torch.randn(2, 2, dtype=torch.float64) @ B.T
    found = complement(inside, A, B)
    assert (found.outside, found.above(0.0)) == (0.0, 0)
    with pytest.raises(ValueError, match="no leading pair"):
        found.leading()
    empty = complement(torch.zeros(shape, dtype=torch.float64), A[:, :0], B[:, :0])
    assert (empty.norm, empty.outside, empty.above(0.0)) == (0.0, 0.0, 0)


def test_a_space_that_is_all_of_one_side_leaves_nothing() -> None:
    M, A, B = torch.randn(4, 9, dtype=torch.float64), orthonormal(4, 4), orthonormal(9, 4)
    assert complement(M, A, B).outside == 0.0
    assert complement(M.T, B, A).outside == 0.0
