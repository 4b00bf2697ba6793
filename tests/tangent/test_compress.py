"""Compression of the token axis: exact, as small as the rank, and within its stated bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangentlora.tangent.compress import TOLERANCE, compress_tokens
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows

B, K, L, M, N = 4, 3, 11, 6, 5


def planted(ranks: list[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return inputs, and gradients whose stacked matrix has the given rank for each example."""
    x = torch.randn(len(ranks), L, N, dtype=torch.float64)
    g = torch.stack([(torch.randn(L, r).double() @ torch.randn(r, K * M).double()) for r in ranks])
    return x.to(dtype), g.reshape(len(ranks), L, K, M).transpose(1, 2).contiguous().to(dtype)


def dense(rows: LayerRows) -> Tensor:
    return Jacobian({"": rows}).to(torch.float64).dense()[""]


def test_the_planted_rank_is_found_and_the_jacobian_kept() -> None:
    ranks = [1, 4, 0, 11]
    x, g = planted(ranks)
    rows = compress_tokens(x, g)
    assert rows.counts.tolist() == ranks
    assert rows.x.dtype == rows.g.dtype == torch.float32
    assert rows.shape == (M, N)
    exact = torch.einsum("bklm,bln->bkmn", g.double(), x.double())
    for i in range(B):
        error = torch.linalg.norm(dense(rows)[i] - exact[i])
        assert error <= 1e-6 * torch.linalg.norm(exact[i])


def test_independent_tokens_stay_as_they_are() -> None:
    x, g = planted([11, 11, 11])
    g[1, :, 2], g[1, :, 7:] = 0.0, 0.0  # as behind a mask: these tokens have no gradient
    g[2] = 0.0
    rows = compress_tokens(x, g)
    assert rows.counts.tolist() == [11, 6, 0]
    live = torch.tensor([0, 1, 3, 4, 5, 6])
    assert torch.equal(rows.x, torch.cat([x[0], x[1, live]]))
    assert torch.equal(rows.g, torch.cat([g[0].transpose(0, 1), g[1, :, live].transpose(0, 1)]))
    g[1, :, 3] = g[1, :, 4]  # two tokens that one row stands for
    fewer = compress_tokens(x, g)
    assert fewer.counts.tolist() == [11, 5, 0]
    assert torch.equal(fewer.x[:11], x[0])
    exact = torch.einsum("bklm,bln->bkmn", g.double(), x.double())
    assert torch.linalg.norm(dense(fewer) - exact) <= 1e-6 * torch.linalg.norm(exact)


def test_examples_without_any_gradient_have_no_rows() -> None:
    x, g = planted([0, 0])
    rows = compress_tokens(x, g)
    assert rows.counts.tolist() == [0, 0]
    assert rows.x.shape == (0, N)
    assert rows.g.shape == (0, K, M)
    assert not dense(rows).any()


@pytest.mark.parametrize("tolerance", [1e-6, 1e-3, 0.1, 0.5])
def test_what_is_dropped_is_within_the_tolerance_and_one_row_less_would_not_be(tolerance: float) -> None:
    _, g = planted([11, 11, 11], torch.float64)
    g = g * torch.logspace(0, -7, M, dtype=torch.float64)  # singular values of every size
    # with the identity for inputs the Jacobian is G itself, so its error is ‖G − UUᵀG‖_F
    rows = compress_tokens(torch.eye(L, dtype=torch.float64).expand(3, L, L), g, tolerance)
    stacked = g.transpose(1, 2).flatten(2)
    dropped = torch.linalg.norm((dense(rows).mT - g).flatten(1), dim=1)
    norms = torch.linalg.norm(stacked, dim=(1, 2))
    assert (dropped <= tolerance * norms * (1 + 1e-9)).all()
    tails = torch.linalg.svdvals(stacked).square().flip(-1).cumsum(-1).flip(-1).sqrt()
    for i, count in enumerate(rows.counts.tolist()):
        assert count == int((tails[i] > tolerance * norms[i]).sum())
        torch.testing.assert_close(dropped[i], torch.cat([tails[i], tails.new_zeros(1)])[count])


def test_the_jacobian_moves_by_no_more_than_the_stated_bound() -> None:
    x, g = planted([11, 7], torch.float64)
    exact = torch.einsum("bklm,bln->bkmn", g, x)
    moved = dense(compress_tokens(x, g, tolerance=0.2)) - exact
    bound = 0.2 * torch.linalg.norm(g.flatten(1), dim=1) * torch.linalg.matrix_norm(x, 2)
    assert moved.any()
    assert (torch.linalg.norm(moved.flatten(1), dim=1) <= bound).all()


def test_half_precision_is_widened_before_anything_is_rounded() -> None:
    x, g = (tensor.to(torch.bfloat16) for tensor in planted([2, 3]))
    rows = compress_tokens(x, g)
    assert rows.x.dtype == torch.float32
    exact = torch.einsum("bklm,bln->bkmn", g.double(), x.double())
    assert torch.linalg.norm(dense(rows) - exact) <= 2 * TOLERANCE * torch.linalg.norm(exact)
