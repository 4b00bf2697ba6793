from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from known_problems import known_problem
from random_problems import random_problem
from spurious_problems import SADDLE, SPURIOUS, Planted
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.factored import perturbation
from tangentlora.theory import curvature
from tangentlora.theory.certificate import certify
from tangentlora.theory.hessian import Hessian
from tangentlora.theory.perturbed import perturbed_gap
from tangentlora.theory.stationarity import Kind, classify

NAMES = [
    "cross_entropy, one layer",
    "cross_entropy, three layers",
    "logistic, three layers",
    "squared, three layers",
]


def padded(factors: Factors, columns: int = 1) -> Factors:
    return {
        t: (torch.cat([u, u.new_zeros(len(u), columns)], 1), torch.cat([v, v.new_zeros(len(v), columns)], 1))
        for t, (u, v) in factors.items()
    }


def added(factors: Factors, step: Factors) -> Factors:
    return {t: (u + step[t][0], v + step[t][1]) for t, (u, v) in factors.items()}


def settled(problem: Problem, factors: Factors, noise: Factors) -> Factors:
    """Return the stationary point of F_Π that Newton's method on the gradient reaches."""
    hessian = Hessian(problem, factors, noise)
    for _ in range(10):
        step = torch.linalg.pinv(hessian.dense(), rtol=1e-9, hermitian=True) @ hessian.gradient
        hessian = hessian.moved(-step)
    return hessian.factors


@pytest.mark.parametrize("name", NAMES)
def test_the_padded_optimum_is_a_rank_deficient_minimum(name: str) -> None:
    problem = known_problem(name)
    optimum = Certified(tolerance=1e-9).solve(problem).factors
    found = classify(problem, padded(optimum))
    assert found.kind is Kind.RANK_DEFICIENT_SOSP
    assert certify(problem, padded(optimum)).certified  # hence global, says the theory; so does the gap
    assert found.gradient < 1e-6
    assert found.curvature > 1e-5  # beside the zeros of rotations
    assert max(found.imbalance.values()) < 1e-5
    assert found.escape is None
    assert all(found.used[t] < found.width[t] for t in found.width)


@pytest.mark.parametrize("name", NAMES)
def test_a_dead_saddle_of_zeros_is_a_strict_saddle_where_sigma_exceeds_lambda(name: str) -> None:
    problem = known_problem(name)
    dead = padded(problem.zero(), 2)
    M = problem.jacobian.adjoint(problem.dual_point(problem.f0))
    steepest = max(float(torch.linalg.matrix_norm(block, 2)) for block in M.values())
    found = classify(problem, dead)
    assert found.gradient == 0  # nothing moves here
    assert found.kind is Kind.STRICT_SADDLE
    assert found.curvature * (problem.lam + steepest) == pytest.approx(problem.lam - steepest, abs=1e-9)
    assert found.escape is not None
    lower = problem.factored_objective(added(dead, found.escape))
    assert lower == pytest.approx(problem.factored_objective(dead) - found.fall, abs=1e-12)
    assert found.fall > 1e-3
    # above the largest σ the same point is the optimum
    flat = problem.with_lam(1.01 * steepest)
    assert classify(flat, dead).kind is Kind.RANK_DEFICIENT_SOSP
    assert classify(flat, dead).escape is None


def test_a_rank_that_is_too_small_is_a_full_rank_minimum_and_a_saddle_once_it_is_padded() -> None:
    planted = Planted(seed=5, m=5, n=6)
    found = classify(planted.problem, planted.at(-1))
    assert found.kind is Kind.FULL_RANK_SOSP
    assert found.curvature == pytest.approx(planted.eigenvalues[0] / planted_scale(planted), abs=1e-9)
    assert not certify(planted.problem, planted.at(-1)).certified  # and the certificate decides
    wider = classify(planted.problem, padded(planted.at(-1)))
    assert wider.kind is Kind.STRICT_SADDLE
    assert wider.used == {"layer": 1}
    assert wider.width == {"layer": 2}


def planted_scale(planted: Planted) -> float:
    """Return λ + ‖M‖₂ at the planted point."""
    q = planted.w * (planted.square + planted.t)
    return 2 * planted.lam + 2 * q / 4


def test_a_planted_strict_saddle_of_full_rank_is_recognised_with_its_direction() -> None:
    planted = replace(SADDLE, seed=2)
    point, problem = planted.at(-1), planted.problem
    found = classify(problem, point)
    assert found.kind is Kind.STRICT_SADDLE
    assert found.curvature == pytest.approx(planted.eigenvalues[0] / planted_scale(planted), abs=1e-9)
    assert found.escape is not None
    (U, V), (P, Q) = found.escape["layer"], planted.direction()["layer"]
    along = float((U * P).sum() + (V * Q).sum()) / float((U.square().sum() + V.square().sum()).sqrt())
    assert abs(along) == pytest.approx(1.0, abs=1e-9)
    assert problem.factored_objective(added(point, found.escape)) < problem.factored_objective(point) - 1e-4


def test_a_point_on_the_way_is_not_stationary_and_never_called_a_minimum() -> None:
    problem, optimum = SPURIOUS.problem, SPURIOUS.at(1)
    for size in (1e-1, 1e-3, 1e-5):
        beside = {t: (u + size * torch.randn_like(u), v) for t, (u, v) in optimum.items()}
        assert classify(problem, beside).kind is Kind.NOT_STATIONARY
    assert classify(problem, optimum).kind is Kind.FULL_RANK_SOSP
    unbalanced = {t: (2 * u, v / 2) for t, (u, v) in optimum.items()}  # same update, higher penalty
    assert classify(problem, unbalanced).kind is Kind.NOT_STATIONARY
    assert classify(problem, unbalanced).imbalance["layer"] > 0.1


def test_what_lies_across_the_span_counts() -> None:
    problem = random_problem(0, "logistic", n_examples=2, shapes=((9, 8),))
    optimum = padded(Certified(tolerance=1e-9).solve(problem).factors)
    reduced = problem.reduced[0].jacobian.shapes["layer.0"]
    assert reduced < (9, 8)
    assert classify(problem, optimum).kind is Kind.RANK_DEFICIENT_SOSP
    outside = {t: (u + 0.1 * torch.randn_like(u), v) for t, (u, v) in optimum.items()}
    kept = problem.reduced[1].lift(problem.reduced[1].lower(outside))
    strayed = {t: (optimum[t][0] + u - kept[t][0], v) for t, (u, v) in outside.items()}
    found = classify(problem, strayed)
    exact = Hessian(problem, strayed)
    scale = (
        sum((exact.slack_norm(t) ** 2) * float(torch.cat(strayed[t]).square().sum()) for t in strayed) ** 0.5
    )
    assert found.kind is Kind.NOT_STATIONARY
    assert found.gradient == pytest.approx(float(exact.gradient.norm()) / scale, rel=1e-6)


@pytest.mark.parametrize("lam", [0.02, 0.3])
@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_the_curvature_in_the_span_is_that_of_all_coordinates(loss: str, lam: float) -> None:
    problem = random_problem(4, loss, lam, n_examples=2, shapes=((9, 8), (7, 9)))
    optimum = Certified(tolerance=1e-10).solve(problem).factors
    H = Hessian(problem, optimum)
    units = torch.eye(len(H.gradient), dtype=torch.float64)
    kept = torch.stack([H.without_rotations(e) for e in units])
    dense = kept @ H.dense() @ kept + 10 * (units - kept)
    scale = max(H.slack_norm(t) for t in optimum)
    found = classify(problem, optimum)
    if len(units):
        assert found.curvature == pytest.approx(float(torch.linalg.eigvalsh(dense)[0]) / scale, abs=1e-8)


def test_layers_without_columns_are_not_varied_and_cannot_vouch_for_the_optimum() -> None:
    problem = known_problem("logistic, three layers")
    optimum = Certified(tolerance=1e-9).solve(problem).factors
    assert 0 in {u.shape[1] for u, _ in optimum.values()}
    assert classify(problem, optimum).kind is Kind.FULL_RANK_SOSP
    assert classify(problem, problem.zero()).kind is Kind.FULL_RANK_SOSP
    assert classify(problem, {}).used == dict.fromkeys(problem.jacobian.layers, 0)


def test_a_poorly_known_curvature_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(2, "squared", 0.02, n_examples=40, shapes=((30, 30),))
    optimum = padded(Certified(tolerance=1e-9).solve(problem).factors)
    monkeypatch.setattr(curvature, "DENSE", 0)
    monkeypatch.setattr(curvature, "_WIDTH", 4)
    assert classify(problem, optimum, max_restarts=1).kind is Kind.UNDECIDED


def test_lanczos_and_the_dense_matrix_agree_on_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = known_problem("squared, three layers")
    optimum = Certified(tolerance=1e-9).solve(problem).factors
    points = [padded(optimum), optimum, padded(problem.zero(), 3)]
    exact = [classify(problem, point) for point in points]
    monkeypatch.setattr(curvature, "DENSE", 0)
    for point, known in zip(points, exact, strict=True):
        found = classify(problem, point)
        assert found.kind is known.kind
        assert found.curvature == pytest.approx(known.curvature, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_with_a_perturbation_the_point_is_one_of_the_perturbed_objective(name: str) -> None:
    problem = known_problem(name)
    optimum = padded(Certified(tolerance=1e-9).solve(problem).factors)
    noise = perturbation(problem.jacobian.shapes, 0.002 * problem.lam, 3, problem.f0)
    assert classify(problem, optimum).kind is Kind.RANK_DEFICIENT_SOSP
    assert classify(problem, optimum, noise=noise).kind is Kind.NOT_STATIONARY
    moved = settled(problem, optimum, noise)
    found = classify(problem, moved, noise=noise)
    assert found.kind is Kind.RANK_DEFICIENT_SOSP
    assert classify(problem, moved).kind is Kind.NOT_STATIONARY
    assert perturbed_gap(problem, moved, noise) < 1e-10  # global for F_Π
    assert "perturbed" in found.sentence()
    dead = classify(problem, padded(problem.zero(), 2), noise=noise)
    assert dead.kind is Kind.STRICT_SADDLE
    assert dead.escape is not None
    beside = Hessian(problem, added(padded(problem.zero(), 2), dead.escape), noise)
    assert beside.value == pytest.approx(problem.empirical_loss(problem.f0) - dead.fall, abs=1e-12)


def test_a_sentence_says_the_kind_and_the_numbers() -> None:
    found = classify(SPURIOUS.problem, SPURIOUS.at(-1))
    assert found.sentence().startswith(Kind.FULL_RANK_SOSP.value)
    assert "columns used 1 of 1" in found.sentence()
    assert f"{found.curvature:.1e}" in found.sentence()
    assert "perturbed" not in found.sentence()


def test_factors_and_noise_that_do_not_fit_are_refused() -> None:
    problem, point = SPURIOUS.problem, SPURIOUS.at(1)
    u, v = point["layer"]
    for wrong in (
        {"layer": (u[:2], v)},
        {"layer": (u, torch.cat([v, v], 1))},
        {"layer": (u * float("nan"), v)},
    ):
        with pytest.raises(InputError, match="expected finite ones of shapes"):
            classify(problem, wrong)
    with pytest.raises(InputError, match="for 'other', expected finite ones"):
        classify(problem, {"other": (u, v)})
    for Pi in (torch.eye(3), torch.triu(torch.ones(8, 8))):
        with pytest.raises(InputError, match="expected a symmetric matrix"):
            classify(problem, point, noise={"layer": Pi.double()})
