from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from tangentlora.problem.spectral import balance, product_singular_values, product_svd, shrink

SHAPES = [(6, 4, 2), (4, 6, 2), (5, 5, 5), (3, 4, 7), (1, 5, 3), (6, 1, 1), (5, 4, 0)]


def factors(m: int, n: int, r: int) -> tuple[Tensor, Tensor]:
    return torch.randn(m, r, dtype=torch.float64), 3 * torch.randn(n, r, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_product_svd_is_the_svd_of_the_product(shape: tuple[int, int, int]) -> None:
    u, v = factors(*shape)
    left, sigma, right = product_svd(u, v)
    dense = np.linalg.svd((u @ v.T).numpy(), compute_uv=False)
    np.testing.assert_allclose(sigma.numpy(), dense[: len(sigma)], atol=1e-12)
    np.testing.assert_allclose(dense[len(sigma) :], 0, atol=1e-12)
    torch.testing.assert_close((left * sigma) @ right.T, u @ v.T)
    eye = torch.eye(len(sigma), dtype=torch.float64)
    torch.testing.assert_close(left.T @ left, eye)
    torch.testing.assert_close(right.T @ right, eye)
    torch.testing.assert_close(product_singular_values(u, v), sigma)


def test_rank_zero_has_no_singular_values() -> None:
    u, v = factors(5, 4, 0)
    assert len(product_singular_values(u, v)) == 0
    assert [w.shape for w in balance(u, v)] == [(5, 0), (4, 0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_balancing_keeps_the_product_and_makes_the_penalty_the_nuclear_norm(
    shape: tuple[int, int, int],
) -> None:
    u, v = factors(*shape)
    p, q = balance(u, v)
    torch.testing.assert_close(p @ q.T, u @ v.T)
    torch.testing.assert_close(p.T @ p, q.T @ q)
    nuclear = np.linalg.norm((u @ v.T).numpy(), "nuc")
    assert 0.5 * float(p.square().sum() + q.square().sum()) == pytest.approx(nuclear, rel=1e-12)
    assert 0.5 * float(u.square().sum() + v.square().sum()) >= nuclear - 1e-12


def test_balancing_drops_what_is_below_the_floor() -> None:
    u, v = factors(6, 5, 3)
    sigma = product_singular_values(u, v)
    p, q = balance(u, v, floor=float(sigma[1] + sigma[2]) / 2)
    assert p.shape[1] == q.shape[1] == 2
    assert float(torch.linalg.matrix_norm(u @ v.T - p @ q.T, 2)) == pytest.approx(float(sigma[2]), rel=1e-10)
    # repeated columns leave a direction that is zero to rounding
    p, _ = balance(torch.cat([u, u], 1), torch.cat([v, v], 1), floor=1e-12)
    assert p.shape[1] == 3


@pytest.mark.parametrize("shape", [(5, 4), (3, 6), (1, 4), (4, 1)])
@pytest.mark.parametrize("threshold", [0.3, 1.0, 100.0])
def test_shrinkage_satisfies_the_optimality_conditions(shape: tuple[int, int], threshold: float) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    u, v = shrink(matrix, threshold)
    torch.testing.assert_close(u.T @ u, v.T @ v)
    # matrix − X ∈ threshold·∂‖X‖_*: spectral norm at most the threshold, aligned with X
    rest = matrix - u @ v.T
    assert float(torch.linalg.matrix_norm(rest, 2)) <= threshold * (1 + 1e-12)
    nuclear = float(torch.linalg.matrix_norm(u @ v.T, "nuc"))
    assert float((rest * (u @ v.T)).sum()) == pytest.approx(threshold * nuclear, abs=1e-12)


def test_shrinkage_is_what_general_solvers_find() -> None:
    matrix = torch.randn(4, 3, dtype=torch.float64)
    u, v = shrink(matrix, 0.8)
    x = cp.Variable((4, 3))
    objective = cp.Minimize(0.5 * cp.sum_squares(x - matrix.numpy()) + 0.8 * cp.normNuc(x))
    optimum = cp.Problem(objective).solve(solver=cp.CLARABEL)
    np.testing.assert_allclose((u @ v.T).numpy(), x.value, atol=1e-5)

    def value(flat: np.ndarray) -> float:
        point = flat.reshape(4, 3)
        return 0.5 * float(((point - matrix.numpy()) ** 2).sum()) + 0.8 * np.linalg.norm(point, "nuc")

    ours = value((u @ v.T).numpy().ravel())
    assert ours == pytest.approx(optimum, abs=1e-7)
    assert minimize(value, (u @ v.T).numpy().ravel(), method="Nelder-Mead").fun >= ours - 1e-12
