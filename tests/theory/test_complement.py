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
@pytest.mark.parametrize("shape", [(7, 9), (9, 7), (8, 8), (5, 40)])
def test_values_and_leading_pair_are_those_of_the_dense_matrix(shape: tuple[int, int], k: int) -> None:
    M = torch.randn(*shape, dtype=torch.float64)
    A, B = orthonormal(shape[0], k), orthonormal(shape[1], k)
    found, W = complement(M, A, B), outside(M, A, B)
    assert found.norm == pytest.approx(float(torch.linalg.matrix_norm(M, 2)), rel=1e-12)
    # A zero singular value is known to the square root of the unit roundoff, relative to ‖M‖₂.
    torch.testing.assert_close(found.values, torch.linalg.svdvals(W), rtol=1e-9, atol=1e-7 * found.norm)
    assert (found.values[-k:] == 0).all() or k == 0
    a, b = found.leading()
    assert float(a.norm()) == pytest.approx(1.0)
    assert float(b.norm()) == pytest.approx(1.0)
    assert float((A.T @ a).norm() + (B.T @ b).norm()) < 1e-12
    assert float(a @ M @ b) == pytest.approx(float(found.values[0]), rel=1e-9)


def test_what_rounding_leaves_of_nothing_counts_as_zero() -> None:
    A, B = orthonormal(6, 2), orthonormal(8, 2)
    inside = 1e3 * A @ torch.randn(2, 2, dtype=torch.float64) @ B.T
    found = complement(inside, A, B)
    assert torch.equal(found.values, torch.zeros(6, dtype=torch.float64))
    with pytest.raises(ValueError, match="no leading pair"):
        found.leading()
    empty = complement(torch.zeros(6, 8, dtype=torch.float64), A[:, :0], B[:, :0])
    assert (empty.norm, float(empty.values[0])) == (0.0, 0.0)


def test_a_space_that_is_all_of_one_side_leaves_nothing() -> None:
    M, A, B = torch.randn(4, 9, dtype=torch.float64), orthonormal(4, 4), orthonormal(9, 4)
    assert float(complement(M, A, B).values[0]) == 0.0
    assert float(complement(M.T, B, A).values[0]) == 0.0
