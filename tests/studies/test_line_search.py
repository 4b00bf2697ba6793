"""The line search: parabolas in two steps, numbers that are none, and directions with nothing to give."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tangentlora.studies.line_search import Fall, line_search


def recorded(objective: Callable[[float], float]) -> tuple[Callable[[float], float], list[float]]:
    steps: list[float] = []

    def asked(step: float) -> float:
        steps.append(step)
        return objective(step)

    return asked, steps


@pytest.mark.parametrize("first", [0.1, 0.5, 1.0, 4.0, 9.0])
def test_a_parabola_is_lowest_at_the_second_step(first: float) -> None:
    objective, steps = recorded(lambda t: 5 - 2 * t + t**2)
    found = line_search(objective, 5.0, 2.0, first, 4)
    assert found.relative == pytest.approx(1 / 5, rel=0.2)  # 80 % of the promise is enough
    assert found.evaluations == len(steps) <= (3 if first == 0.1 else 2)
    assert objective(found.step) == pytest.approx(5 - 5 * found.relative)


def test_it_asks_no_more_than_it_may_and_ends_early_where_little_is_promised() -> None:
    objective, steps = recorded(lambda t: 1 - 1e-4 * t + t**2)
    assert line_search(objective, 1.0, 1e-4, 1.0, 4) == Fall(0.0, 0.0, 1)
    assert steps == [1.0]
    objective, steps = recorded(lambda t: 1 + t**0.5)  # not as its slope was told
    assert line_search(objective, 1.0, 1.0, 1.0, 3) == Fall(0.0, 0.0, 3)
    assert line_search(objective, 1.0, 1.0, 1.0, 0) == Fall(0.0, 0.0, 0)


def test_a_step_to_no_number_is_shortened() -> None:
    objective, steps = recorded(lambda t: math.nan if t > 1 else 5 - 2 * t + t**2)
    found = line_search(objective, 5.0, 2.0, 10.0, 4)
    assert steps[0] == 10.0
    assert found.relative > 0.19


def test_a_straight_line_is_followed_by_longer_steps() -> None:
    objective, steps = recorded(lambda t: 100 - t)
    assert line_search(objective, 100.0, 1.0, 1.0, 3) == Fall(0.64, 64.0, 3)
    assert steps == [1.0, 8.0, 64.0]
