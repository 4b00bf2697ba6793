"""The verdict says what the numbers prove, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from report import run_folders as made
from tangentlora.report.record import Run
from tangentlora.report.verdict import verdict


def told(answers: list[dict[str, Any]], **more: Any) -> str:
    return "\n".join(verdict(Run.parse(made.run(answers, **more))))


def lora(rank: int, above: float, **more: Any) -> dict[str, Any]:
    return made.answer(f"LoRA r={rank}", made.OPTIMUM + above, rank=rank, **more)


def test_a_certified_answer_is_named_with_its_distance() -> None:
    words = told([made.certified()])
    assert "The certified solver found the best answer: its objective 0.731247" in words
    assert "within 3.2e-10 of the global optimum" in words
    assert "its accuracy is 0.711 in the linearised network and 0.699 in the real one, against 0.560" in words


def test_no_distance_below_rounding_is_claimed() -> None:
    words = told([made.certified(lower_bound=made.OPTIMUM + 2e-16)])
    assert "within 1e-10 of the global optimum" in words


def test_every_rank_that_arrives_is_counted_at_each_tolerance() -> None:
    words = told([lora(1, 2.05e-5), lora(4, 3e-7), made.certified()])
    assert "Every LoRA rank tried (1 and 4) is proved to end within 1e-3" in words
    assert "none was caught in a local minimum worse than that" in words
    assert (
        "The smallest LoRA rank proved to end within 1e-6 of the global optimum is 4; rank 4 is proved to"
        in words
    )
    assert "rank 1 is not" in words
    assert "LoRA stops short of the optimum by at least 2e-5 at rank 1." in words
    assert "Rank 1 used every epoch" in words


def test_the_smallest_rank_need_not_be_one_of_a_row() -> None:
    words = told([lora(8, 1e-5), lora(2, 1e-5), lora(4, 0.02), made.certified()])
    assert (
        "The smallest LoRA rank proved to end within 1e-3 of the global optimum is 2; ranks 2 and 8" in words
    )
    assert "rank 4 is not" in words


def test_when_no_rank_arrives_the_shortfall_of_each_is_told_and_rounded_down() -> None:
    words = told([lora(1, 0.20899, status="STATIONARY"), lora(2, 0.0689), made.certified()])
    assert "No LoRA rank tried is proved to end within 1e-3" in words
    assert "the closest is rank 2, within 0.069" in words
    assert "by at least 0.2 at rank 1 and 0.068 at rank 2" in words
    assert "Rank 2 used every epoch" in words
    assert "within 1e-6" not in words


def test_without_a_certified_answer_nothing_is_called_optimal() -> None:
    words = told([lora(1, 0.2, lower_bound=0.1), lora(2, 0.01, lower_bound=0.50000077)])
    assert "No run is certified at the tolerance 1e-6: the least objective is 0.741247" in words
    assert "no answer of any rank is below 0.500000, so at most 0.25 is left to gain" in words
    assert "found the best answer" not in words
    assert "by at least 0.19 at rank 1." in words


def test_the_best_bound_of_all_runs_serves_each() -> None:
    loose = lora(8, 1e-5, lower_bound=-4.0, gap=4.7, relative_gap=4.7)
    assert "Every LoRA rank tried (8 and 16)" in told([loose, lora(16, 1e-5), made.certified()])


def test_one_run_that_is_not_certified_ends_with_what_to_do() -> None:
    words = told([lora(8, 1e-4, ranks={made.QUERY: 0, made.VALUE: 3})])
    assert "LoRA r=8 is not certified at the tolerance 1e-6" in words
    assert "train for more epochs" in words
    assert "3, of the 8 it was given, so LoRA of rank 3 can hold it" in words
    assert "do not rule out a smaller rank" in words


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ({made.QUERY: 0, made.VALUE: 0}, "has rank 0 in every layer: at λ = 0.1 it changes nothing"),
        ({made.QUERY: 1, made.VALUE: 0}, "so LoRA of rank 1 can hold it."),
        ({made.QUERY: 2, made.VALUE: 5}, "is 5, so LoRA of rank 5 can hold it"),
    ],
)
def test_the_rank_that_holds_the_answer(ranks: dict[str, int], words: str) -> None:
    assert words in told([made.certified(ranks=ranks)])


def test_full_fine_tuning_is_placed_too() -> None:
    full = made.answer("full fine-tuning", made.OPTIMUM + 4e-8, solver="proximal")
    assert "Full fine-tuning is proved to end within 4.1e-8 of the optimum." in told([full, made.certified()])


def test_a_diverged_run_is_told_and_proves_nothing() -> None:
    diverged = made.answer("LoRA r=16", None, rank=16, message="Lower the learning rate.", ranks={})
    alone = told([diverged])
    assert alone.startswith("No run ended with a finite objective, so nothing is proved.")
    assert "LoRA r=16 has no finite objective. Lower the learning rate." in alone
    among = told([lora(8, 1e-5), diverged, made.certified()])
    assert "The smallest LoRA rank proved to end within 1e-3 of the global optimum is 8" in among
    assert "rank 16 is not" in among
    both = told([diverged | {"name": "LoRA r=8", "rank": 8}, diverged, made.certified()])
    assert "No LoRA rank tried is proved to end within 1e-3 of the global optimum." in both


def test_without_a_lower_bound_nothing_is_proved() -> None:
    assert "without a lower bound nothing is proved" in told([lora(1, 0.1, lower_bound=None)])


def test_without_a_test_set_nothing_is_said_of_new_examples() -> None:
    words = told([made.certified()], test_set=False)
    assert "No held-out rows: all scores are on the training rows" in words
    assert "held-out examples" not in words
    assert "accuracy" not in words


def test_an_objective_above_one_is_measured_relatively() -> None:
    big = made.certified(objective=50.0, lower_bound=49.9999904)
    words = told([big])
    assert "within 2e-7 of the global optimum" in words
    assert "relative to the objective where it is above 1" in words
    left = told([made.answer("LoRA r=1", 50.0, rank=1, lower_bound=40.0)])
    assert "at most 10 is left to gain" in left
