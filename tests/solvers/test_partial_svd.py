from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangentlora.problem.spectral import shrink
from tangentlora.solvers.partial_svd import shrink_products


def with_spectrum(m: int, n: int, sigma: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(m, len(sigma), generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, len(sigma), generator=generator, dtype=torch.float64)).Q
    return (left * sigma) @ right.T


def shrunken(G: Tensor, guess: Tensor, threshold: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return shrink_products(lambda V: G @ V, lambda U: G.T @ U, guess, threshold, generator)


def assert_shrunken(G: Tensor, guess: Tensor, threshold: float) -> Tensor:
    """Compare with the dense proximal point; return the guess for the next call."""
    u, v, following = shrunken(G, guess, threshold)
    a, b = shrink(G, threshold)
    assert u.shape == a.shape
    assert v.shape == b.shape
    scale = float(torch.linalg.matrix_norm(G, 2))
    torch.testing.assert_close(u @ v.T, a @ b.T, rtol=0, atol=1e-7 * max(1.0, scale))
    torch.testing.assert_close(u.T @ u, v.T @ v, rtol=0, atol=1e-7 * max(1.0, scale))
    assert following.shape[0] == G.shape[1]
    torch.testing.assert_close(following.T @ following, torch.eye(following.shape[1], dtype=torch.float64))
    return following


def spectrum(kind: str, size: int) -> Tensor:
    k = torch.arange(size, dtype=torch.float64)
    return {
        "fast": 2.0 * 0.5**k,
        "slow": 2.0 * 0.97**k,
        "flat": torch.full((size,), 2.0, dtype=torch.float64),
        "cluster": torch.cat([torch.full((5,), 2.0), torch.full((size - 5,), 0.999)]).double(),
    }[kind]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.1, 1.9, 3.0])
@pytest.mark.parametrize("kind", ["fast", "slow", "flat", "cluster"])
@pytest.mark.parametrize(("m", "n"), [(40, 30), (30, 40), (7, 50), (50, 7), (8, 6)])
def test_from_an_empty_guess_it_is_the_dense_proximal_point(
    m: int, n: int, kind: str, threshold: float
) -> None:
    G = with_spectrum(m, n, spectrum(kind, min(m, n)))
    assert_shrunken(G, G.new_zeros(n, 0), threshold)


def test_the_guess_leads_to_the_next_matrix_of_a_sequence() -> None:
    G = with_spectrum(60, 50, spectrum("slow", 50))
    guess = G.new_zeros(50, 0)
    for step in range(4):
        guess = assert_shrunken(G + 0.01 * step * torch.randn_like(G), guess, 1.0)
        assert guess.shape[1] < 50


def test_a_good_guess_needs_few_products() -> None:
    G = with_spectrum(60, 50, spectrum("fast", 50))
    columns = 0

    def right(V: Tensor) -> Tensor:
        nonlocal columns
        columns += V.shape[1]
        return G @ V

    def left(U: Tensor) -> Tensor:
        nonlocal columns
        columns += U.shape[1]
        return G.T @ U

    generator = torch.Generator().manual_seed(0)
    *_, guess = shrink_products(right, left, G.new_zeros(50, 0), 0.3, generator)
    cold, columns = columns, 0
    shrink_products(right, left, guess, 0.3, generator)
    assert columns < min(cold, 2 * 50)


@pytest.mark.parametrize("missing", [0, 2])
def test_a_direction_that_the_guess_misses_is_found(missing: int) -> None:
    sigma = torch.tensor([5.0, 3.0, 2.0, *[0.4] * 37], dtype=torch.float64)
    G = with_spectrum(50, 40, sigma)
    right = torch.linalg.svd(G).Vh.T
    kept = [k for k in range(3) if k != missing]
    assert_shrunken(G, right[:, kept].contiguous(), 1.0)
    assert_shrunken(G, right[:, 20:26].contiguous(), 1.0)  # a guess that knows nothing of use


@pytest.mark.parametrize("seed", range(5))
def test_a_direction_that_rises_just_above_the_threshold_is_found(seed: int) -> None:
    sigma = torch.tensor([5.0, 3.0, 2.0, 0.1, *[0.6] * 56], dtype=torch.float64)
    risen = sigma.clone()
    risen[3] = 1.25
    guess = assert_shrunken(with_spectrum(70, 60, sigma, seed), torch.zeros(60, 0, dtype=torch.float64), 1.2)
    assert_shrunken(with_spectrum(70, 60, risen, seed), guess, 1.2)


def test_the_zero_matrix_gives_rank_zero() -> None:
    G = torch.zeros(5, 4, dtype=torch.float64)
    u, v, guess = shrunken(G, G.new_zeros(4, 0), 0.5)
    assert (u.shape, v.shape) == ((5, 0), (4, 0))
    assert guess.shape[1] <= 4


def test_the_same_generator_gives_the_same_bytes() -> None:
    G = with_spectrum(30, 20, spectrum("slow", 20))
    first, second = (shrunken(G, G.new_zeros(20, 0), 1.0, seed=3) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
