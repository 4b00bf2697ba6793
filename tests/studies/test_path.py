"""The certified λ path of a task: its points, the λ it chooses, its table and its figure."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from known_problems import largest_lam
from random_problems import random_problem
from small_studies import small_plan
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.report.canvas import house_style
from tangentlora.report.path_figure import path_figure
from tangentlora.report.path_record import LambdaPath, PathPoint
from tangentlora.solvers.certified import Certified
from tangentlora.studies.measure import linearised_sets
from tangentlora.studies.path import (
    certified_path,
    cross_validate,
    fold_of,
    lambda_path,
    zero_is_optimal_from,
)
from tangentlora.studies.prepare import Prepared, prepare, scores
from tangentlora.theory.certificate import certify


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(small_plan(tmp_path_factory.mktemp("path")).cases[0].settings, dev=True)


@pytest.fixture(scope="module")
def path(prepared: Prepared) -> LambdaPath:
    return lambda_path(prepared, points=8, fraction=1e-2)


def test_every_point_is_certified_and_that_of_a_cold_solve(prepared: Prepared, path: LambdaPath) -> None:
    assert len(path.points) == 8
    assert path.points[-1].lam == pytest.approx(1e-2 * path.points[0].lam)
    for point in path.points:
        assert point.certified
        cold = Certified().solve(prepared.problem.with_lam(point.lam))
        assert point.objective == pytest.approx(cold.objective, abs=2e-6)
        assert point.gap <= 1e-6
    first = path.points[0]
    assert sum(first.ranks.values()) == first.products == 0
    before: dict[str, float] = {}
    for part in linearised_sets(prepared):
        before |= part.scores({})
    assert first.scores == pytest.approx(before)
    assert sum(path.points[-1].ranks.values()) > 0


def test_the_lam_is_the_dev_sets(path: LambdaPath) -> None:
    def merit(point: PathPoint) -> tuple[float, float, float]:
        return point.scores["dev_accuracy"], -point.scores["dev_loss"], point.lam

    assert path.best == max(path.points, key=merit)
    assert path.rule == "highest accuracy on the dev set, then lowest loss, then the larger λ"


def test_without_a_dev_set_folds_choose(prepared: Prepared) -> None:
    path = lambda_path(replace(prepared, dev=None), points=4, fraction=0.05, folds=4)
    expected = cross_validate(prepared.problem, [point.lam for point in path.points], 4, seed=13)
    for point, validated in zip(path.points, expected, strict=True):
        assert "dev_loss" not in point.scores
        assert point.scores["cv_loss"] == pytest.approx(validated["cv_loss"])
    best = max((p.scores["cv_accuracy"], -p.scores["cv_loss"], p.lam) for p in path.points)
    assert path.chosen == best[2]
    assert "4-fold cross-validation" in path.rule


def test_cross_validation_predicts_every_example_without_it() -> None:
    problem = random_problem(0, n_examples=12)
    lams = (0.2, 0.1)
    place = fold_of(problem.y, 3, seed=5)
    for lam, found in zip(lams, cross_validate(problem, lams, 3, seed=5), strict=True):
        z = problem.f0.clone()
        for fold in range(3):
            kept = [i for i in range(12) if place[i] != fold]
            part = Problem(
                problem.jacobian.select(kept), problem.f0[kept], problem.y[kept], problem.loss, lam
            )
            factors = Certified(1e-9).solve(part).factors
            change = problem.jacobian.forward({name: u @ v.T for name, (u, v) in factors.items()})
            z[place == fold] += change[place == fold]
        expected = scores(z, problem.y.tolist(), "cv")
        assert found["cv_accuracy"] == expected["cv_accuracy"]
        assert found["cv_loss"] == pytest.approx(expected["cv_loss"], abs=1e-3)


def test_folds_hold_every_class_evenly() -> None:
    y = torch.tensor([0] * 10 + [1] * 6 + [2] * 4)
    place = fold_of(y, 4, seed=0)
    for k, count in enumerate((10, 6, 4)):
        sizes = torch.bincount(place[y == k], minlength=4)
        assert int(sizes.max() - sizes.min()) <= 1
        assert int(sizes.sum()) == count
    assert torch.bincount(place).tolist() == [5, 5, 5, 5]
    assert torch.equal(place, fold_of(y, 4, seed=0))
    assert not torch.equal(place, fold_of(y, 4, seed=1))


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_zero_is_proved_optimal_from_the_first_lam_and_not_below(loss: str) -> None:
    problem = random_problem(4, loss)
    lam = zero_is_optimal_from(problem)
    assert largest_lam(problem) <= lam <= largest_lam(problem) * (1 + 1e-9)
    at = problem.with_lam(lam)
    assert certify(at, at.zero()).certified
    below = problem.with_lam(0.99 * lam)
    assert not certify(below, below.zero(), tolerance=1e-9).certified


def test_certificates_are_of_the_answers() -> None:
    problem = random_problem(2, n_examples=14)
    lams = [0.9**j * zero_is_optimal_from(problem) for j in range(16)]
    path = certified_path(problem, lams)
    assert {sum(certificate.ranks.values()) for _, certificate in path} >= {0, 1, 2}
    for lam, (solution, certificate) in zip(lams, path, strict=True):
        assert certificate == certify(problem.with_lam(lam), solution)


def test_what_cannot_be_certified_is_not_chosen() -> None:
    problem = random_problem(2)
    (_, hopeless), *_ = certified_path(problem, (0.05, 0.04), tolerance=1e-30)
    assert not hopeless.certified


def test_bad_input_is_refused(prepared: Prepared) -> None:
    for folds in (1, 99):
        with pytest.raises(InputError, match=f"got {folds} folds for 8 examples, expected 2 to 8"):
            lambda_path(replace(prepared, dev=None), points=3, folds=folds)
    with pytest.raises(InputError, match="got 1 points down to the fraction"):
        lambda_path(prepared, points=1)
    strict = replace(prepared, settings=replace(prepared.settings, tolerance=1e-30))
    with pytest.raises(InputError, match="got no certified answer among 2 values of λ"):
        lambda_path(strict, points=2, fraction=0.5)


def test_the_table_has_a_line_per_lam_and_a_star_at_the_chosen_one(path: LambdaPath) -> None:
    lines = path.table().splitlines()
    assert " ".join(lines[0].split()) == "λ objective relative gap certified rank train dev test"
    assert len(lines) == 2 + 8 + 2
    (star,) = [line for line in lines[2:10] if line.startswith("*")]
    assert f"{path.chosen:.4g}" in star
    assert lines[-1] == f"* chosen: {path.rule}."


def test_the_figure_tells_the_path(path: LambdaPath) -> None:
    with house_style():
        picture, again = path_figure(path), path_figure(path)
    assert picture == again
    assert ElementTree.fromstring(picture.svg).tag.endswith("svg")
    assert picture.png.startswith(b"\x89PNG\r\n\x1a\n")
    assert "8 values of λ, 8 of them certified" in picture.caption
    assert f"test {path.best.scores['test_accuracy']:.3f}" in picture.alt
    failed = replace(path, points=(*path.points[:-1], replace(path.points[-1], certified=False)))
    with house_style():
        assert "7 of them certified" in path_figure(failed).caption


def test_the_figure_of_many_layers_sums_their_ranks(path: LambdaPath) -> None:
    many = tuple(
        replace(point, ranks={f"layer.{t}.query": t % 2 for t in range(12)}) for point in path.points
    )
    with house_style():
        picture = path_figure(replace(path, points=many))
    assert "<!-- all layers together -->" in picture.svg
