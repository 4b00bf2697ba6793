from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from random_problems import random_problem
from tangentlora.blocks import Factors
from tangentlora.problem import threads
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.proximal import Proximal
from tangentlora.solvers.solution import Record, Solver


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "solver", [Descent(rank=2, epochs=3), Proximal(epochs=3), Certified()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize(("small", "expected"), [(2**20, 1), (10, 3)])
def test_small_problems_keep_to_one_thread_and_give_the_others_back(
    solver: Solver, small: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_SMALL", small)
    seen = set()

    def monitor(record: Record, factors: Factors) -> dict[str, float]:
        seen.add(torch.get_num_threads())
        return {}

    solver.solve(random_problem(), monitor)
    assert seen == {expected}
    assert torch.get_num_threads() == 3


def test_the_threads_are_given_back_after_an_error() -> None:
    def monitor(record: Record, factors: Factors) -> dict[str, float]:
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        Proximal(epochs=3).solve(random_problem(), monitor)
    assert torch.get_num_threads() == 3
