"""Whether an answer holds on the real network: every rule says yes and no, and chance is an exact test."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest

from tangentlora.problem.losses import CrossEntropy, Squared
from tangentlora.theory.regime import set_standing
from tangentlora.theory.standing import (
    CHANCE,
    HALVINGS,
    LEFT,
    ROUGH,
    Holds,
    SetStanding,
    Standing,
    falls_to,
    find_reach,
    paired_chance,
)

GOOD = SetStanding(100, 1.0, 0.4, 0.5, 0.7, 0.9, 0.85, lost=2, gained=17, error=0.2)


def verdict(
    held_out: SetStanding | None = None, penalty: float = 0.1, slack: float = 1e-6, **more: object
) -> Holds:
    sets = {"train": replace(GOOD, **more)}  # type: ignore[arg-type]
    if held_out is not None:
        sets["test"] = held_out
    return Standing(sets, penalty, slack).verdict


@pytest.mark.parametrize("lost", [0, 1, 2, 5, 17, 60, 123, 800])
@pytest.mark.parametrize("gained", [0, 1, 3, 17, 40, 129, 1000])
def test_chance_is_the_exact_two_sided_test_of_equal_odds(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert paired_chance(lost, gained) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert paired_chance(lost, gained) == paired_chance(gained, lost)


def test_an_answer_that_is_better_in_all_holds() -> None:
    assert verdict() is Holds.YES
    assert Standing({"train": GOOD}, 0.1).holds
    assert Standing({"train": GOOD}, 0.1).objective == pytest.approx(0.6)


def test_no_update_at_all_holds() -> None:
    still = SetStanding(100, 1.0, 1.0, 1.0, 0.7, 0.7, 0.7, lost=0, gained=0, error=0.0)
    assert Standing({"train": still}).verdict is Holds.YES


@pytest.mark.parametrize(
    ("rise", "slack", "expected"),
    [
        (1e-3, 1e-6, Holds.LOSS_RISES),
        (1e-7, 1e-6, Holds.YES),  # as two passes of one network differ
        (0.4, 0.5, Holds.YES),
        (math.inf, 1e-6, Holds.NOT_FINITE),
        (math.nan, 1e-6, Holds.NOT_FINITE),
    ],
)
def test_a_training_loss_above_that_before_does_not_hold(rise: float, slack: float, expected: Holds) -> None:
    assert verdict(real_loss=1.0 + rise, penalty=0.0, slack=slack) is expected


def test_an_objective_above_that_of_no_update_does_not_hold() -> None:
    assert verdict(penalty=0.49) is Holds.YES
    assert verdict(penalty=0.51) is Holds.OBJECTIVE_RISES
    assert verdict(penalty=0.51, real_loss=1.1) is Holds.LOSS_RISES  # the plainer reason comes first


@pytest.mark.parametrize(
    ("lost", "gained", "falls"),
    [(6, 0, True), (5, 0, False), (40, 20, True), (30, 20, False), (20, 40, False), (0, 0, False)],
)
def test_accuracy_falls_where_chance_does_not_explain_it(lost: int, gained: int, falls: bool) -> None:
    assert bool(binomtest(lost, max(1, lost + gained), 0.5).pvalue < CHANCE and lost > gained) is falls
    changed = replace(GOOD, lost=lost, gained=gained)
    assert changed.accuracy_falls is falls
    expected = Holds.ACCURACY_FALLS if falls else Holds.YES
    assert verdict(held_out=changed) is expected
    assert verdict(lost=lost, gained=gained) is expected


@pytest.mark.parametrize(
    ("missed", "met", "expected"),
    [
        (6, 0, Holds.ACCURACY_FALLS),  # the linearised network does better, and not by chance
        (5, 0, Holds.FITS_TOO_CLOSELY),
        (0, 20, Holds.FITS_TOO_CLOSELY),
        (None, None, Holds.ACCURACY_FALLS),  # it was not asked
    ],
)
def test_a_fall_that_the_linearised_network_shares_is_the_fit_s(
    missed: int | None, met: int | None, expected: Holds
) -> None:
    changed = replace(GOOD, lost=90, gained=20, missed=missed, met=met)
    assert verdict(held_out=changed) is expected
    assert not Standing({"train": GOOD, "test": changed}).holds
    # it is the last of the reasons
    assert verdict(held_out=replace(changed, error=2 * LEFT)) is (
        expected if expected is Holds.ACCURACY_FALLS else Holds.LEFT_REGIME
    )
    assert verdict(held_out=replace(changed, lost=20)) is Holds.YES


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ROUGH, Holds.YES),
        (1.01 * ROUGH, Holds.ROUGHLY),
        (LEFT, Holds.ROUGHLY),
        (1.01 * LEFT, Holds.LEFT_REGIME),
        (math.inf, Holds.LEFT_REGIME),
        (math.nan, Holds.LEFT_REGIME),
        (None, Holds.YES),
    ],
)
def test_the_error_of_the_outputs_is_graded(error: float | None, expected: Holds) -> None:
    assert verdict(error=error) is expected
    assert verdict(held_out=replace(GOOD, error=error)) is expected
    assert (
        expected.value.startswith("The answer holds") is Standing({"train": replace(GOOD, error=error)}).holds
    )


def test_a_set_is_measured_as_by_hand() -> None:
    draw = torch.Generator().manual_seed(2)
    before, linear, real = (torch.randn(40, 3, generator=draw, dtype=torch.float64) for _ in range(3))
    y = torch.arange(40) % 3
    found = set_standing(CrossEntropy(), y, before, linear, real)
    was, now = before.argmax(1) == y, real.argmax(1) == y
    assert found.lost == sum(a and not b for a, b in zip(was.tolist(), now.tolist(), strict=True))
    assert found.gained == sum(b and not a for a, b in zip(was.tolist(), now.tolist(), strict=True))
    said = linear.argmax(1) == y
    assert (found.missed, found.met) == (int((said & ~now).sum()), int((now & ~said).sum()))
    assert found.real_accuracy == pytest.approx(float(now.double().mean()))
    assert found.before_loss == pytest.approx(float(torch.nn.functional.cross_entropy(before, y)))

    def seen(z: torch.Tensor) -> torch.Tensor:
        return z - z.mean(1, keepdim=True)

    assert found.error == pytest.approx(float(seen(real - linear).norm() / seen(linear - before).norm()))
    # a common shift of an example's outputs changes nothing that cross-entropy sees
    shifted = set_standing(CrossEntropy(), y, before + 3, linear - 5, real + 7)
    assert shifted.error == pytest.approx(found.error)
    vectors = set_standing(Squared(), before, before, None, real)
    assert (vectors.lost, vectors.real_accuracy, vectors.error, vectors.linear_loss) == (
        None,
        None,
        None,
        None,
    )
    assert vectors.chance is vectors.missed is None
    assert not vectors.accuracy_falls


@pytest.mark.parametrize("turn", [0.03, 0.1, 0.2, 0.4, 0.7, 0.9])
def test_the_reach_is_near_the_turning_point(turn: float) -> None:
    asked: list[float] = []

    def loss(tau: float) -> float:
        asked.append(tau)
        return 1 + (tau - turn) ** 2 - turn**2

    known = {0.0: loss(0.0), 1.0: loss(1.0)}
    asked.clear()
    found = find_reach(loss, known)
    assert turn / 2 <= found.tau <= 2 * turn
    assert found.tried == tuple(sorted(found.tried))
    assert not {0.0, 1.0} & set(asked)
    assert len(asked) == len(set(asked)) <= HALVINGS + 2
    assert found.loss == loss(found.tau) < known[0.0]


def test_a_loss_that_falls_all_the_way_or_nowhere() -> None:
    assert find_reach(lambda tau: 1 - tau, {0.0: 1.0, 1.0: 0.0}).tau == 1
    never = find_reach(lambda tau: 1 + tau, {0.0: 1.0, 1.0: 2.0})
    assert (never.tau, never.loss) == (0.0, 1.0)
    assert min(tau for tau, _ in never.tried if tau) == 2.0**-HALVINGS
    broken = find_reach(lambda tau: 1 - tau if tau < 0.3 else math.nan, {0.0: 1.0, 1.0: math.nan})
    assert 0.25 <= broken.tau < 0.3
    # what is known is not asked for again, and counts
    assert falls_to({0.0: 1.0, 0.25: 0.7, 0.5: 0.8, 1.0: 0.6}).tau == 0.25
