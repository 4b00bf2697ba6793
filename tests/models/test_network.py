"""How examples are cut into batches: every one once, at the least cost, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from tangentlora.models.network import _CALL, batched, dealt_batches


def cuts(count: int, most: int) -> Iterator[list[int]]:
    """Yield every way to write `count` as a sum of numbers up to `most`, in order."""
    if count == 0:
        yield []
    for first in range(1, min(most, count) + 1):
        for rest in cuts(count - first, most):
            yield [first, *rest]


def cost(lengths: Sequence[int], sizes: Sequence[int]) -> float:
    """Return the tokens with padding of runs of these sizes, longest first, and what their calls cost."""
    ordered, total, start = sorted(lengths, reverse=True), 0.0, 0
    for size in sizes:
        total += size * ordered[start] + _CALL * sum(lengths) / len(lengths)
        start += size
    return total


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_of_the_sorted_examples_costs_less(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, most = int(torch.randint(1, 11, (), generator=generator)), 1 + seed % 5
    lengths = torch.randint(1, 60, (n,), generator=generator).tolist()
    batches = batched(lengths, most)
    assert sorted(i for index, _ in batches for i in index) == list(range(n))
    for index, tokens in batches:
        assert len(index) <= most
        assert tokens == len(index) * max(lengths[i] for i in index)
    assert [len(index) for index, _ in batches] in list(cuts(n, most))
    chosen = cost(lengths, [len(index) for index, _ in batches])
    assert chosen == pytest.approx(min(cost(lengths, sizes) for sizes in cuts(n, most)), rel=1e-12)


def test_examples_of_one_length_fill_their_batches() -> None:
    assert [len(index) for index, _ in batched([7] * 40, 32)] == [32, 8]
    assert [len(index) for index, _ in batched([7] * 64, 32)] == [32, 32]
    assert batched([], 32) == []


def test_one_long_example_does_not_lengthen_all_others() -> None:
    first, second = batched([10] * 15 + [100], 32)
    assert first == ((15,), 100)
    assert second == (tuple(range(15)), 150)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_share_the_same_batches(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (50,), generator=generator).tolist()
    features = [{"input_ids": torch.zeros(length)} for length in lengths]
    dealt = dealt_batches(features, 8, count)
    assert len(dealt) == count
    assert sorted(batch for own in dealt for batch in own) == sorted(batched(lengths, 8))
    loads = [sum(tokens for _, tokens in own) for own in dealt]
    assert max(loads) - min(loads) <= max(tokens for _, tokens in batched(lengths, 8))
