"""Rows split in blocks of columns: exact, fewer numbers, zero outside, and never where it does not pay."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fake_network import examples_of, fake_network, jacrev_blocks, relative_error
from tangentlora.tangent.column_blocks import split_columns
from tangentlora.tangent.compress import TOLERANCE, compress_rows
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.linearize import linearize
from tiny_networks import NETWORKS

B, K, L, N = 5, 2, 9, 8


def planted(
    ranks: Mapping[int, list[int]], m: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return inputs and gradients; block b of example i has rank `ranks[i][b]`."""
    g = torch.zeros(len(ranks), K, L, m, dtype=torch.float64)
    for i, of_blocks in ranks.items():
        for b, rank in enumerate(of_blocks):
            block = torch.randn(L, rank).double() @ torch.randn(rank, K * width).double()
            g[i, :, :, b * width : (b + 1) * width] = block.reshape(L, K, width).transpose(0, 1)
    return torch.randn(len(ranks), L, N, dtype=torch.float64).to(dtype), g.to(dtype)


def exact(x: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bklm,bln->bkmn", g.double(), x.double())


def dense(rows: LayerRows) -> Tensor:
    return Jacobian({"": rows}).to(torch.float64).dense()[""]


def supports(rows: LayerRows, width: int) -> list[set[int]]:
    """Return for each row the blocks in which it is not zero."""
    return [{int(c) // width for c in columns.nonzero()} for columns in (rows.g != 0).any(1)]


def numbers(rows: LayerRows, width: int) -> int:
    return len(rows.x) * (rows.shape[1] + K * width)


@pytest.mark.parametrize("seed", range(4))
def test_planted_blocks_are_found_and_the_jacobian_is_kept(seed: int) -> None:
    torch.manual_seed(seed)
    number, width = (4, 8) if seed % 2 else (6, 4)
    ranks = {i: torch.randint(0, 3, (number,)).tolist() for i in range(B)}
    ranks[0] = [1] * number
    x, g = planted(ranks, number * width, width)
    rows = compress_rows(x, g)
    assert rows.counts.tolist() == [sum(ranks[i]) for i in range(B)]
    assert all(len(blocks) == 1 for blocks in supports(rows, width))
    error = torch.linalg.norm((dense(rows) - exact(x, g)).flatten(1), dim=1)
    assert (error <= 1e-6 * torch.linalg.norm(exact(x, g).flatten(1), dim=1)).all()


def test_of_two_widths_the_one_with_fewer_numbers_is_taken() -> None:
    x, g = planted({0: [1] * 8, 1: [1] * 8}, 32, 4)
    assert all(len(blocks) == 1 for blocks in supports(compress_rows(x, g), 4))
    # blocks of rank 2 that end at every 8th column: those of 4 would have rank 2 each, so twice the rows
    x, g = planted({0: [2] * 4, 1: [2] * 4}, 32, 8)
    rows = compress_rows(x, g)
    assert rows.counts.tolist() == [8, 8]
    assert all(len(blocks) == 1 for blocks in supports(rows, 8))
    assert max(len(blocks) for blocks in supports(rows, 4)) == 2


def test_rows_without_blocks_stay_as_they_are() -> None:
    x, g = torch.randn(3, L, N), torch.randn(3, K, L, 24)
    rows = LayerRows(x.flatten(0, 1), g.transpose(1, 2).flatten(0, 1), torch.tensor([L, L, L]))
    assert split_columns(rows, TOLERANCE) is rows
    single = LayerRows(rows.x[:2], rows.g[:2], torch.tensor([1, 0, 1]))
    assert split_columns(single, TOLERANCE) is single
    # full tokens come back to the bit, so that two layers with the same inputs can share them
    whole = compress_rows(x, g)
    assert torch.equal(whole.x, rows.x)
    assert torch.equal(whole.g, rows.g)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5])
def test_one_number_outside_its_block_is_kept(size: float) -> None:
    ranks = {i: [1] * 6 for i in range(B)}
    x, g = planted(ranks, 48, 8, torch.float64)
    # one token alone moves another column: no row of block 0 can stand for it
    g[0, 0, 4, 5] += size * torch.linalg.norm(g[0])
    rows = compress_rows(x, g)
    error = torch.linalg.norm((dense(rows) - exact(x, g)).flatten(1), dim=1)
    bound = TOLERANCE * torch.linalg.norm(g.flatten(1), dim=1) * torch.linalg.matrix_norm(x, 2)
    assert (error <= bound).all()
    assert rows.counts.tolist() == [7, 6, 6, 6, 6]


def test_an_example_that_blocks_do_not_suit_keeps_its_jacobian() -> None:
    ranks = {i: [1] * 6 for i in range(B)}
    x, g = planted(ranks, 48, 8)
    g[3] = torch.randn(L, 1) @ torch.randn(K, 1, 48)  # one dense row, which is six in blocks
    rows = compress_rows(x, g)
    assert rows.counts.tolist() == [6] * B
    assert torch.linalg.norm(dense(rows) - exact(x, g)) <= 1e-6 * torch.linalg.norm(exact(x, g))
    g[1:] = g[3]  # if most are so, blocks would make three times as many rows
    rows = compress_rows(x, g)
    assert rows.counts.tolist() == [6, 1, 1, 1, 1]
    assert torch.linalg.norm(dense(rows) - exact(x, g)) <= 1e-6 * torch.linalg.norm(exact(x, g))


@pytest.mark.parametrize("tolerance", [1e-6, 1e-2, 0.3])
def test_what_both_steps_drop_is_within_the_tolerance(tolerance: float) -> None:
    _, g = planted({i: [1, 2, 1, 2] for i in range(B)}, 32, 8, torch.float64)
    g = g + 1e-2 * torch.randn_like(g)
    # with the identity for inputs the Jacobian is G itself
    rows = compress_rows(torch.eye(L, dtype=torch.float64).expand(B, L, L), g, tolerance)
    dropped = torch.linalg.norm((dense(rows).mT - g).flatten(1), dim=1)
    assert (dropped <= tolerance * torch.linalg.norm(g.flatten(1), dim=1) * (1 + 1e-9) + 1e-12).all()


def test_a_matrix_whose_width_has_no_divisor_stays_dense() -> None:
    x, g = planted({0: [1], 1: [2]}, 13, 13)
    rows = compress_rows(x, g)
    assert rows.counts.tolist() == [1, 2]
    assert numbers(rows, 13) == 3 * (N + K * 13)


@pytest.mark.parametrize("kind", ["bert-mlm", "roberta-mlm", "bert"])
def test_the_heads_of_an_encoder_read_at_one_token_are_found(kind: str) -> None:
    module, tensors, read = NETWORKS[kind]()
    network = fake_network(module, read)
    tangent = linearize(network, examples_of(tensors))
    query, value = tangent.jacobian.layers.values()
    assert query.counts.tolist() == [1, 1, 1]
    assert value.counts.tolist() == [4, 4, 4]
    assert supports(value, 8) == [{0}, {1}, {2}, {3}] * 3
    expected = jacrev_blocks(network, tensors, tangent.targets)
    for name, block in tangent.jacobian.dense().items():
        assert relative_error(block, expected[name]) < 1e-5


def test_a_network_that_reads_every_token_stays_dense() -> None:
    module, tensors, _ = NETWORKS["vit"]()
    network = fake_network(module, lambda t: module.vit(**t).last_hidden_state.mean(1)[:, :3])
    tangent = linearize(network, examples_of(tensors))
    for rows in tangent.jacobian.layers.values():
        assert (rows.g != 0).all(2).any()
