from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from random_problems import random_problem
from small_runs import small_settings
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.solvers.factored import perturbation
from tangentlora.studies.landscape import Landscape, Outcome
from tangentlora.studies.landscape_study import _spanned, landscape_of
from tangentlora.studies.prepare import prepare
from tangentlora.studies.rest import Start, begin, rest
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.theory.hessian import Hessian
from tangentlora.theory.perturbed import perturbed_gap
from tangentlora.theory.stationarity import classify


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("surveyed")


@pytest.fixture(scope="module")
def landscape(folder: Path) -> Landscape:
    return landscape_of(small_settings(folder, lam=0.02), (4, 1, 1), repeats=1)


def test_the_landscape_is_that_of_the_settings_problem(folder: Path, landscape: Landscape) -> None:
    problem = prepare(small_settings(folder, lam=0.02)).problem
    assert landscape.constraints == problem.constraints
    assert landscape.ranks == [1, 4]  # sorted, once each
    assert len(landscape.runs) == 2 * len(Start)
    assert landscape.lam == 0.02
    assert landscape.size == pytest.approx(2e-5)
    assert landscape.counts(4) == {Outcome.GLOBAL_OPTIMUM: len(Start)}
    for run in landscape.runs:
        if run.outcome is Outcome.GLOBAL_OPTIMUM:
            assert run.relative_gap <= landscape.tolerance
    assert landscape.excess <= landscape.cost
    assert landscape.minima(1)[0].value > landscape.minima(4)[0].value + 1e-3  # rank 1 is too little here


def test_a_stationary_point_in_the_span_is_one_of_all_coordinates() -> None:
    problem = random_problem(0, "cross_entropy", n_examples=2, shapes=((12, 11),))
    inner, span = problem.reduced
    Pi = perturbation(inner.jacobian.shapes, 1e-3, 0, problem.f0)
    rested = rest(inner, begin(inner, Pi, 2, Start.LARGE, 0), Pi)
    A, B = span.columns["layer.0"], span.rows["layer.0"]
    assert A is not None
    assert B is not None
    lift = torch.block_diag(A, B)  # type: ignore[no-untyped-call]
    matrix = lift @ Pi["layer.0"] @ lift.T
    lifted = {"layer.0": 0.5 * (matrix + matrix.T)}
    there = Hessian(problem.contrasted, span.lift(rested), lifted)
    assert there.value == pytest.approx(Hessian(inner, rested, Pi).value, abs=1e-13)
    assert float(there.gradient.norm()) < 1e-12
    within, across = classify(inner, rested, noise=Pi), classify(problem, there.factors, noise=lifted)
    assert within.kind is across.kind
    values = torch.linalg.eigvalsh(there.dense())
    inside = torch.linalg.eigvalsh(Hessian(inner, rested, Pi).dense())
    outside = torch.full((len(values) - len(inside),), problem.lam, dtype=torch.float64)
    torch.testing.assert_close(values, torch.cat([inside, outside]).sort().values, rtol=0, atol=1e-10)
    gap = perturbed_gap(inner, rested, Pi)
    assert perturbed_gap(problem.contrasted, there.factors, lifted) == pytest.approx(gap, abs=1e-12)


def test_layers_without_rows_are_left_out_and_outputs_without_any_layer_refused() -> None:
    whole = random_problem(1, "squared", n_examples=3)
    rows = whole.jacobian.layers
    empty = LayerRows(torch.zeros(0, 5).double(), torch.zeros(0, 3, 6).double(), torch.zeros(3).long())
    partly = Problem(Jacobian({"idle": empty, **rows}), whole.f0, whole.y, whole.loss, whole.lam)
    assert list(_spanned(partly).jacobian.layers) == list(rows)
    idle = Problem(Jacobian({"idle": empty}), whole.f0, whole.y, whole.loss, whole.lam)
    with pytest.raises(InputError, match="got outputs that depend on none of the adapted matrices"):
        _spanned(idle)


@pytest.mark.parametrize(
    ("ranks", "size", "repeats", "message"),
    [
        ((), None, 1, "got the ranks"),
        ((1,), -1.0, 1, "expected a positive number"),
        ((1,), math.inf, 1, "expected a positive number"),
        ((1,), None, 0, "expected at least 1: change --repeats"),
        ((1, 640), None, 1, "got rank 640, expected 1 to 32, the smaller side"),
    ],
)
def test_bad_requests_are_refused(
    folder: Path, ranks: tuple[int, ...], size: float | None, repeats: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        landscape_of(small_settings(folder, lam=0.02), ranks, size=size, repeats=repeats)


def test_no_penalty_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="λ = 0"):
        landscape_of(small_settings(folder, lam=0.0, solver="sgd"), (1,))
