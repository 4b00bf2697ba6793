from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from small_runs import small_settings
from tangentlora.errors import InputError
from tangentlora.studies.advise import Advice, advise
from tangentlora.studies.prepare import prepare
from tangentlora.theory.certificate import certify


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("advised")


@pytest.fixture(scope="module")
def advice(folder: Path) -> Advice:
    return advise(small_settings(folder, lam=0.02), (4, 1, 2, 2, 64))


def test_runs_are_held_against_the_certified_optimum(advice: Advice) -> None:
    assert advice.optimum.certified
    assert [run.rank for run in advice.runs] == [1, 2, 4]  # sorted, once each, and 64 fits no matrix
    assert advice.rank == 2
    assert advice.runs[0].within >= advice.runs[0].above > 1e-3
    for run in advice.runs[1:]:
        assert run.within <= 1e-6
        assert run.certificate.objective >= advice.optimum.lower_bound
        assert all(used <= run.rank for used in run.used.values())


def test_theorem_one_and_the_bound_agree_with_the_optimum(advice: Advice) -> None:
    reduced, bound = advice.reduced, advice.bound
    assert reduced.certified
    assert reduced.objective == pytest.approx(advice.optimum.objective, abs=1e-12)
    assert sum(r * (r + 1) // 2 for r in reduced.ranks.values()) <= reduced.constraints
    for layer, most in bound.ranks.items():
        assert reduced.ranks[layer] <= most < bound.sides[layer]
        assert advice.optimum.ranks[layer] <= most
    ranks = {rule.name.split(" = ")[0]: rule.rank for rule in advice.rules}
    assert ranks["r(r+1)/2 > KN"] == 9  # 18 of 24 sentences, two labels
    assert ranks["r(r+1)/2 > (K−1)N"] == 6
    assert ranks["the least rank of a run at the optimum"] == 2
    assert ranks["the rank of a certified optimum"] == max(reduced.ranks.values())


def test_the_sentence_says_what_is_proved(advice: Advice) -> None:
    assert advice.sentence().startswith("Rank 2 is enough: its run is proved to be within ")
    assert "The runs at smaller ranks (1) are proved to be farther away." in advice.sentence()
    unsure = replace(advice, runs=(replace(advice.runs[0], above=0.0), *advice.runs[1:]))
    assert "No run at a smaller rank (1) is proved to be." in unsure.sentence()
    assert f"No optimum has a rank above {advice.bound.largest}" in advice.sentence()
    short = replace(advice, runs=advice.runs[:1])
    assert short.rank is None
    assert short.sentence().startswith("No run (rank 1) is proved to be within the tolerance 1e-6")
    assert "so rank 2 can express it" in short.sentence()


def test_an_optimum_that_is_not_certified_is_not_called_one(advice: Advice) -> None:
    poor = advice.runs[0].certificate
    doubtful = replace(advice, optimum=poor, reduced=poor, runs=advice.runs[:1])
    assert doubtful.rank is None
    assert "The certified solver itself fell short. Not certified: the gap" in doubtful.sentence()
    assert "can express it" not in doubtful.sentence()


def test_the_table_shows_runs_rules_and_sentence(advice: Advice) -> None:
    table = advice.table()
    assert max(map(len, table.splitlines())) <= 100
    for rule in advice.rules:
        assert rule.name in table
    assert [line.split()[0] for line in table.splitlines()[:4]] == ["rank", "1", "2", "4"]
    assert table.replace("\n", " ").endswith(advice.sentence())
    unknown = replace(advice, runs=(replace(advice.runs[0], within=math.inf),))
    assert "–" in unknown.table().splitlines()[1]


def test_everything_is_json(advice: Advice) -> None:
    described = json.loads(json.dumps(advice.describe()))
    assert described["rank"] == 2
    assert described["sentence"] == advice.sentence()
    parts = {"rank", "sentence", "optimum", "reduced", "bound", "rules", "runs", "data_check"}
    assert set(described) == parts
    assert described["rules"][0]["rank"] == 9
    assert described["runs"][1]["certificate"]["certified"]


def test_another_solver_trains_where_it_is_named(folder: Path) -> None:
    settings = small_settings(folder, lam=0.05, solver="sgd", epochs=3)
    advice = advise(settings, (1, 2))
    assert [run.epochs for run in advice.runs] == [3, 3]
    assert advice.rank is None
    assert {run.status for run in advice.runs} == {"EPOCHS_SPENT"}


def test_a_large_lambda_needs_no_rank_at_all(folder: Path) -> None:
    advice = advise(small_settings(folder, lam=50.0), (1,))
    assert advice.rank == 1
    assert set(advice.bound.ranks.values()) == {0}
    assert "No optimum has a rank above 0 in any layer." in advice.sentence()


def test_it_is_the_problem_of_fit(folder: Path, advice: Advice) -> None:
    problem = prepare(small_settings(folder, lam=0.02)).problem
    assert certify(problem, problem.zero()).constraints == advice.optimum.constraints
    assert advice.optimum.n_examples == len(problem.f0)


@pytest.mark.parametrize(
    ("ranks", "changes", "message"),
    [
        ((), {}, r"got the ranks \(none\), expected at least one, none below 1: change --ranks"),
        ((4, 0), {}, r"got the ranks 4 and 0, expected at least one, none below 1"),
        ((1,), {"lam": 0.0, "solver": "sgd"}, r"got λ = 0 for the certified solver"),
    ],
)
def test_bad_input_is_told_before_any_work(
    tmp_path: Path, ranks: tuple[int, ...], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        advise(small_settings(tmp_path, **{"model": "never loaded"} | changes), ranks)


def test_ranks_that_fit_no_matrix_are_told(folder: Path) -> None:
    with pytest.raises(InputError, match=r"got rank 64, expected 1 to 32, .* change --rank, or --ranks"):
        advise(small_settings(folder), (64,))
