from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangentlora.solvers.leading_pairs import leading_pairs


def matrix(sigma: Tensor, m: int = 90, n: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    """Return a matrix with these singular values, and its singular vectors."""
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.linalg.qr(torch.randn(d, len(sigma), generator=generator, dtype=torch.float64)).Q
        for d in (m, n)
    )
    return a * sigma @ b.T, a, b


@pytest.mark.parametrize("known", [0, 3])
def test_the_pairs_above_the_floor_are_those_of_a_full_decomposition(known: int) -> None:
    # as at a stationary point: some at λ = 1, one a little above, the others well below
    sigma = torch.cat([torch.tensor([1.05, 1.0, 1.0, 1.0]), torch.linspace(0.8, 0.0, 60)]).double()
    M, a, b = matrix(sigma)
    left, found, right = leading_pairs(M, b[:, 1 : 1 + known], 0.99, 10)
    assert found.tolist() == pytest.approx([1.05, 1.0, 1.0, 1.0], rel=1e-2)
    assert bool((found <= sigma[:4] * (1 + 1e-12)).all())  # from below
    assert float((left[:, 0] @ a[:, 0]).abs()) > 0.99
    assert float((right[:, 0] @ b[:, 0]).abs()) > 0.99
    for side in (left, right):
        torch.testing.assert_close(side.T @ side, torch.eye(4).double())


def test_exact_pairs_are_exact_and_at_most_as_many_as_asked() -> None:
    M, _, b = matrix(torch.linspace(2.0, 0.0, 80).double())
    left, found, right = leading_pairs(M, b[:, :2], 0.5, 7, exact=True)
    torch.testing.assert_close(found, torch.linalg.svdvals(M)[:7])
    torch.testing.assert_close(M @ right, left * found)


def test_a_small_matrix_is_decomposed_in_full() -> None:
    M = torch.randn(12, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, found, right = leading_pairs(M, M.new_zeros(9, 0), 0.0, 100)
    torch.testing.assert_close(left * found @ right.T, M)
    assert len(leading_pairs(M, M.new_zeros(9, 0), float(found[0]), 100)[1]) == 0
    nothing = leading_pairs(M[:0], M.new_zeros(9, 0), 0.0, 100)
    assert [part.shape for part in nothing] == [(0, 0), (0,), (9, 0)]


def test_the_same_matrix_gives_the_same_bytes() -> None:
    M, _, b = matrix(torch.linspace(1.0, 0.0, 80).double())
    first, second = (leading_pairs(M, b[:, :2], 0.5, 9) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
