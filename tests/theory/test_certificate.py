from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

from known_problems import KNOWN, known_optimum, known_problem, largest_lam, rescaled
from random_jacobians import random_factors
from random_problems import random_problem
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.losses import CrossEntropy
from tangentlora.problem.objective import Problem
from tangentlora.problem.rounding import spectral_norm_bounds
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.newton import newton
from tangentlora.solvers.solution import Record, Solution, Status
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.theory.certificate import Certificate, certify, read_certificate


def random_points(problem: Problem, count: int) -> list[Factors]:
    """Return factors of all ranks and sizes, and points on the way to the optimum."""
    optimum = Certified().solve(problem).factors
    points = []
    for i in range(count):
        drawn = random_factors(problem.jacobian, (i % 4, (i + 1) % 3, 1))
        size = 10.0 ** (i % 5 - 3)
        point = {name: (size * u, size * v) for name, (u, v) in drawn.items()}
        if i % 2:
            near = {name: (math.sqrt(1 - size / 100) * u, v) for name, (u, v) in optimum.items()}
            point = {name: tuple(torch.cat(w, 1) for w in zip(near[name], point[name])) for name in near}  # noqa: B905
        points.append(point)
    return points


@pytest.mark.parametrize("name", KNOWN)
def test_the_gap_is_never_below_the_distance_from_the_optimum(name: str) -> None:
    problem, optimum = known_problem(name), known_optimum(name)
    for factors in random_points(problem, 60):
        certificate = certify(problem, factors)
        assert certificate.objective == pytest.approx(problem.objective(factors), rel=1e-12)
        assert certificate.factored_objective == pytest.approx(problem.factored_objective(factors), rel=1e-12)
        assert certificate.lower_bound <= optimum + 1e-9
        assert certificate.gap + certificate.rounding >= certificate.objective - optimum - 1e-9
        assert certificate.factored_gap >= certificate.factored_objective - optimum - 1e-9
        assert certificate.certified == (certificate.objective - optimum <= 1e-6) or certificate.gap > 1e-6
        assert certificate.relative_gap == certificate.gap / max(1.0, certificate.objective)


@pytest.mark.parametrize("name", KNOWN)
def test_the_optimum_is_certified_and_everything_in_it_is_said(name: str) -> None:
    problem = known_problem(name)
    solution = Certified().solve(problem)
    certificate = certify(problem, solution)
    assert certificate.certified
    assert certificate.gap <= 1e-6
    assert certificate.lower_bound == pytest.approx(known_optimum(name), abs=1e-6)
    assert certificate.objective == pytest.approx(solution.objective, rel=1e-13)
    assert certificate.ranks == solution.ranks
    assert certificate.constraints == problem.constraints
    assert (certificate.loss, certificate.lam) == (problem.loss.name, problem.lam)
    assert (certificate.n_examples, certificate.n_outputs) == tuple(problem.f0.shape)
    assert certificate.dual_scale == min(1.0, problem.lam / max(certificate.spectral_norms.values()))
    assert f"total rank {sum(solution.ranks.values())}" in certificate.sentence()
    assert certificate.sentence().startswith("Certified: within ")
    assert certify(problem.contrasted, solution).gap == pytest.approx(certificate.gap, abs=1e-12)


def test_nothing_is_taken_from_the_solver() -> None:
    problem = known_problem("squared, one output")
    bragging = Solution(problem, problem.zero(), Status.GLOBAL_OPTIMUM, (Record(0, 0.0, 0.0),), 0)
    certificate = certify(problem, bragging)
    assert not certificate.certified
    assert certificate == certify(problem, problem.zero()) == certify(problem, {})


def test_a_rank_that_is_too_small_is_seen() -> None:
    problem = random_problem(3, "squared", n_examples=30, n_outputs=3, shapes=((8, 8),))
    problem = replace(problem, lam=0.05 * largest_lam(problem))
    optimum = Certified().solve(problem)
    assert optimum.ranks["layer.0"] >= 3
    u, v = optimum.factors["layer.0"]
    stuck = newton(problem, {"layer.0": (u[:, :1], v[:, :1])}, tolerance=1e-10)
    assert stuck.gradient_norm <= 1e-10  # stationary, and yet
    certificate = certify(problem, stuck.factors)
    assert not certificate.certified
    assert certificate.gap > 100 * certificate.tolerance
    assert certificate.gap >= certificate.objective - optimum.objective > 0
    assert max(certificate.spectral_norms.values()) > problem.lam
    assert certificate.sentence().startswith("Not certified: the gap ")
    assert certify(problem, optimum).certified


def test_just_above_the_tolerance_is_not_certified() -> None:
    problem = known_problem("cross_entropy, five classes")
    factors = {name: (1.001 * u, v) for name, (u, v) in Certified().solve(problem).factors.items()}
    found = certify(problem, factors)
    proved = (found.gap + found.rounding) / max(1.0, found.objective)
    assert found.gap > 0
    assert not certify(problem, factors, proved * (1 - 1e-9)).certified
    assert certify(problem, factors, proved * (1 + 1e-9)).certified
    # what rounding may have done counts against the answer
    assert not certify(problem, factors, found.relative_gap * (1 + 1e-14)).certified


# Rounding


def longdouble_norm(matrix: np.ndarray) -> float:
    """Return ‖M‖₂ by power iteration in extended precision: a lower bound, here good to 1e-15."""
    vector = np.linalg.svd(matrix.astype(np.float64))[2][0].astype(np.longdouble)
    for _ in range(200):
        vector = matrix.T @ (matrix @ vector)
        vector /= np.sqrt(vector @ vector)
    image = matrix @ vector
    return float(np.sqrt(image @ image))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [(3, 5), (40, 30), (200, 60)])
def test_the_norm_is_an_upper_bound_and_close(size: tuple[int, int], seed: int) -> None:
    loss = ("cross_entropy", "logistic", "squared")[seed % 3]
    problem = random_problem(seed, loss, n_examples=20, shapes=(size,))
    if seed >= 3:
        problem = rescaled(problem, (1e4, 1e-3, 1.0))
    a = problem.dual_point(problem.f0)
    rows = problem.jacobian.layers["layer.0"]
    wide = a.numpy().astype(np.longdouble)[rows.example.numpy()]
    weighted = (wide[:, :, None] * rows.g.numpy()).sum(1)
    exact = longdouble_norm(weighted.T @ rows.x.numpy())
    bound = spectral_norm_bounds(problem, a)["layer.0"]
    assert exact < bound <= exact * (1 + 1e-10)


def test_the_norm_counts_what_cancels() -> None:
    # two rows that cancel but for the last digits: the computed M is nearly all rounding
    x = torch.tensor([[1.0, 1 / 3], [1.0, 1 / 3]], dtype=torch.float64)
    g = torch.tensor([[[0.1, 0.7, 0.3]], [[-0.1, -0.7, -0.3]]], dtype=torch.float64) * (1 + 1e-15)
    jacobian = Jacobian({"only": LayerRows(x, g, torch.tensor([1, 1]))})
    problem = random_problem(loss="squared", n_examples=2, n_outputs=1)
    problem = Problem(jacobian, problem.f0, problem.y, problem.loss, 0.1)
    a = torch.tensor([[0.3], [0.3 * (1 + 2e-16)]], dtype=torch.float64)
    M = mpmath.matrix(3, 2)
    with mpmath.workdps(50):
        for row in range(2):
            outer = mpmath.matrix(g[row, 0].tolist()) * mpmath.matrix(x[row].tolist()).T
            M += mpmath.mpf(float(a[row, 0])) * outer
        assert max(mpmath.svd_r(M, compute_uv=False)) < spectral_norm_bounds(problem, a)["only"] < 1e-14


def exactly(problem: Problem, factors: Factors, a: torch.Tensor, scale: float) -> tuple[float, float, float]:
    """Return P, the dual value and max_t ‖sM_t‖₂ in 50 digits, at the feasible point that a stands for."""
    (n, k), kind = problem.f0.shape, problem.loss.name
    z, dual = exact(problem.f0), exact(a)
    y = exact(problem.y) if kind == "squared" else problem.y.tolist()
    if kind == "cross_entropy":
        for i, label in enumerate(y):
            others = [max(n * dual[i, c], mpmath.mpf(0)) for c in range(k)]
            others[label] = mpmath.mpf(0)
            shrunk = [q / max(mpmath.mpf(1), sum(others)) for q in others]
            for c in range(k):
                dual[i, c] = (-sum(shrunk) if c == label else shrunk[c]) / n
    penalty, norms = mpmath.mpf(0), []
    for name, rows in problem.jacobian.layers.items():
        u, v = factors[name]
        delta = exact(u) * exact(v).T if u.shape[1] else mpmath.zeros(*rows.shape)
        penalty += sum(mpmath.svd_r(delta, compute_uv=False))
        M = mpmath.zeros(*rows.shape)
        for row, i in enumerate(rows.example.tolist()):
            x, g = exact(rows.x[row : row + 1]), exact(rows.g[row])
            for c, slope in enumerate((g * delta * x.T)[:]):
                z[i, c] += slope
            M += (dual[i, :] * g).T * x
        norms.append(scale * max(mpmath.svd_r(M, compute_uv=False)))
    loss = conjugate = mpmath.mpf(0)
    for i in range(n):
        if kind == "cross_entropy":
            loss += mpmath.log(sum(mpmath.exp(z[i, c]) for c in range(k))) - z[i, y[i]]
            shares = [n * scale * dual[i, c] + (c == y[i]) for c in range(k)]
            conjugate += sum(q * mpmath.log(q) for q in shares if q > 0)
        elif kind == "logistic":
            loss += mpmath.log1p(mpmath.exp(-y[i] * z[i, 0]))
            q = -y[i] * n * scale * dual[i, 0]
            conjugate += sum(share * mpmath.log(share) for share in (q, 1 - q) if share > 0)
        else:
            loss += sum((z[i, c] - y[i, c]) ** 2 for c in range(k)) / 2
            b = [n * scale * dual[i, c] for c in range(k)]
            conjugate += sum(b[c] ** 2 / 2 + b[c] * y[i, c] for c in range(k))
    product = sum(dual[i, c] * mpmath.mpf(float(problem.f0[i, c])) for i in range(n) for c in range(k))
    return loss / n + problem.lam * penalty, scale * product - conjugate / n, max(norms)


def exact(tensor: torch.Tensor) -> mpmath.matrix:
    return mpmath.matrix(tensor.tolist())


SCALINGS = {
    "plain": ((1.0,), 1.0),
    "uneven examples": ((1e3, 1e-3, 1.0), 1.0),
    "far outputs": ((1.0,), 1e4),
}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_the_margin_covers_what_rounding_does(loss: str, scaling: str) -> None:
    given = rescaled(random_problem(7, loss, n_examples=5, shapes=((4, 5), (3, 3))), *SCALINGS[scaling])
    problem = replace(given, lam=0.1 * largest_lam(given))
    points = [problem.zero(), Certified().solve(problem).factors, random_factors(problem.jacobian, (2, 1))]
    for factors in points:
        certificate = certify(problem, factors)
        a = problem.dual_point(problem.outputs(factors))
        with mpmath.workdps(50):
            objective, bound, norm = exactly(problem, factors, a, mpmath.mpf(certificate.dual_scale))
            difference = abs(certificate.objective - objective) + abs(certificate.lower_bound - bound)
            assert difference <= certificate.rounding
            assert norm <= problem.lam  # the dual point is feasible without any rounding
        size = max(1.0, abs(certificate.objective), abs(certificate.lower_bound))
        assert 0 < certificate.rounding < 1e-8 * size


def test_well_classified_examples_are_no_trouble() -> None:
    # the softmax is 1 to rounding: a + e_y is on the border of the simplex, and misses it
    problem = random_problem(1, n_examples=6, n_outputs=4)
    sure = 60.0 * torch.nn.functional.one_hot(problem.y, 4).double() + problem.f0
    certificate = certify(replace(problem, f0=sure, lam=1e-20), problem.zero())
    assert certificate.certified
    assert 0 <= certificate.objective < 1e-20
    assert certify(replace(problem, f0=-sure), problem.zero()).objective > 50


# Bad input and files


def test_factors_that_do_not_fit_are_refused() -> None:
    problem = known_problem("logistic, three layers")
    good = random_factors(problem.jacobian, (1, 1, 1))
    u, v = good["layer.0"]
    for pair in [(u.T, v), (u, v[:-1]), (u, torch.cat([v, v], 1))]:
        with pytest.raises(
            InputError, match=r"for 'layer\.0', expected .* certify the answer against the problem"
        ):
            certify(problem, good | {"layer.0": pair})
    with pytest.raises(InputError, match=r"for 'layer\.9', expected"):
        certify(problem, good | {"layer.9": (u, v)})
    for bad in (math.nan, math.inf):
        with pytest.raises(
            InputError, match=r"got factors of 'layer\.0' that are not finite, expected numbers"
        ):
            certify(problem, good | {"layer.0": (bad * u, v)})
    with pytest.raises(InputError, match="got factors whose outputs overflow, expected numbers"):
        certify(problem, good | {"layer.0": (1e200 * u, 1e200 * v)})
    for tolerance in (0.0, -1e-6, math.nan, math.inf):
        with pytest.raises(InputError, match=f"got the tolerance {tolerance}, expected a positive number"):
            certify(problem, good, tolerance)


def test_single_precision_factors_are_judged_in_double() -> None:
    problem = known_problem("cross_entropy, one layer")
    single = {name: (u.float(), v.float()) for name, (u, v) in Certified().solve(problem).factors.items()}
    double = {name: (u.double(), v.double()) for name, (u, v) in single.items()}
    assert certify(problem, single) == certify(problem, double)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Certificate, Path]:
    certificate = certify(
        known_problem("logistic, one layer"), random_factors(known_problem("logistic, one layer").jacobian)
    )
    certificate.write(tmp_path / "certificate.json")
    return certificate, tmp_path / "certificate.json"


def test_a_certificate_is_written_whole_and_read_back(written: tuple[Certificate, Path]) -> None:
    certificate, path = written
    assert read_certificate(path) == certificate
    assert json.loads(path.read_text()) == asdict(certificate)
    assert [entry.name for entry in path.parent.iterdir()] == ["certificate.json"]
    replace(certificate, lam=0.5).write(path)
    assert read_certificate(path).lam == 0.5


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"objective": 1.0}', "\udc80"])
def test_an_unreadable_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "certificate.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"which is not a readable certificate .* run fit again"):
        read_certificate(path)
    with pytest.raises(InputError, match="not a readable certificate"):
        read_certificate(tmp_path / "missing.json")


def test_a_field_that_is_missing_or_of_another_kind_is_refused(written: tuple[Certificate, Path]) -> None:
    certificate, path = written
    values = asdict(certificate)
    for field in fields(Certificate):
        path.write_text(json.dumps({k: v for k, v in values.items() if k != field.name}))
        with pytest.raises(InputError, match=f"KeyError: '{field.name}'"):
            read_certificate(path)
        path.write_text(json.dumps(values | {field.name: None}))
        with pytest.raises(InputError, match=f"TypeError: None is not a {field.type}".replace("[", r"\[")):
            read_certificate(path)


def test_the_certificate_of_one_class_too_few_cannot_be_made() -> None:
    problem = known_problem("squared, one output")
    with pytest.raises(InputError, match="got one output for cross-entropy"):
        Problem(problem.jacobian, problem.f0, torch.zeros(8, dtype=torch.long), CrossEntropy(), 0.1)


@pytest.mark.parametrize("seed", range(4))
def test_the_dual_point_is_feasible_though_the_softmax_misses_the_simplex(seed: int) -> None:
    given = random_problem(seed, n_examples=6, n_outputs=4, shapes=((4, 5),))
    sure = given.f0 + 30.0 * torch.nn.functional.one_hot(given.y, 4)
    given = replace(given, f0=sure)
    problem = replace(given, lam=0.5 * largest_lam(given))
    certificate = certify(problem, problem.zero())
    with mpmath.workdps(50):
        a, scale = problem.dual_point(problem.f0), mpmath.mpf(certificate.dual_scale)
        objective, bound, norm = exactly(problem, problem.zero(), a, scale)
        assert norm <= problem.lam
        assert (
            abs(certificate.objective - objective) + abs(certificate.lower_bound - bound)
            <= certificate.rounding
        )
