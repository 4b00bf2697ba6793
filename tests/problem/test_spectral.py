from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from tangentlora.problem import spectral
from tangentlora.problem.spectral import balance, norm_bound, product_singular_values, product_svd, shrink

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


def spectra(side: int) -> dict[str, Tensor]:
    """Return singular values that are easy, and those that are not: equal, nearly equal, one, and tiny."""
    count = torch.arange(side, dtype=torch.float64)
    return {
        "falling": 0.9**count,
        "equal": torch.ones(side, dtype=torch.float64),
        "nearly equal": 1 - 1e-12 * count,
        "one": (count == 0).double(),
        "tiny": 1e-150 * 0.5**count,
    }


@pytest.mark.parametrize("shape", [(3, 5), (64, 64), (65, 90), (200, 80), (130, 130)])
@pytest.mark.parametrize("kind", list(spectra(1)))
def test_the_norm_is_bounded_and_hardly_exceeded(shape: tuple[int, int], kind: str) -> None:
    """The matrix is built around its singular values, so that its norm is known to a few roundoffs."""
    m, n = shape
    sigma = spectra(min(m, n))[kind]
    left, _ = torch.linalg.qr(torch.randn(m, len(sigma), dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(n, len(sigma), dtype=torch.float64))
    matrix = (left * sigma) @ right.T
    exact = np.linalg.norm(matrix.numpy(), 2)
    bound = norm_bound(matrix)
    assert exact * (1 - 1e-15) <= bound <= exact * (1 + 1e-11)
    assert norm_bound(matrix.T) == pytest.approx(bound, rel=1e-11)


def top(gram: Tensor) -> float:
    """Return the eigenvalue that Lanczos is asked for."""
    return float(torch.linalg.eigvalsh(gram)[-1])


@pytest.mark.parametrize("guess", [0.5, 1 - 1e-9, float("nan"), -1.0, 0.0])
def test_a_guess_that_is_too_low_proves_nothing(monkeypatch: pytest.MonkeyPatch, guess: float) -> None:
    matrix = torch.randn(90, 100, dtype=torch.float64)
    exact = float(torch.linalg.svdvals(matrix)[0])
    monkeypatch.setattr(spectral, "leading_eigenpair", lambda gram: (guess * top(gram), gram[0]))
    assert exact <= norm_bound(matrix) <= exact * (1 + 1e-11)


def test_a_guess_that_is_too_high_still_gives_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(90, 100, dtype=torch.float64)
    exact = float(torch.linalg.svdvals(matrix)[0])
    monkeypatch.setattr(spectral, "leading_eigenpair", lambda gram: (4 * top(gram), gram[0]))
    assert norm_bound(matrix) == pytest.approx(2 * exact)


def test_a_matrix_of_zeros_and_an_empty_one_have_the_norm_zero() -> None:
    assert norm_bound(torch.zeros(100, 80, dtype=torch.float64)) == 0
    assert norm_bound(torch.zeros(0, 80, dtype=torch.float64)) == 0
