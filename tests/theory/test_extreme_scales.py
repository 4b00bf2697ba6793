"""Certificates from one end of float64 to the other, held against an evaluation in extended precision."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from random_jacobians import random_factors
from random_problems import random_problem
from tangentlora.errors import InputError
from tangentlora.problem.losses import CrossEntropy, Squared
from tangentlora.problem.objective import Problem
from tangentlora.problem.rounding import spectral_norm_bounds
from tangentlora.problem.spectral import norm_bound
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.theory.agreement import differences
from tangentlora.theory.certificate import certify
from tangentlora.theory.evidence import Answer
from tangentlora.theory.rank_bound import operator_norm_bound, rank_bound
from tangentlora.theory.recompute import recomputation
from tangentlora.theory.shards import Layer, Shard, Store

SHAPES = [(90, 100), (65, 70), (6, 5)]


def gaussian(power: float, share: float, shape: tuple[int, int], seed: int = 0) -> Problem:
    """Return Gaussian rows with 10^power shared out among x and g."""
    draw, (m, n), N, K = torch.Generator().manual_seed(seed), shape, 30, 3
    x = torch.randn(N, n, generator=draw, dtype=torch.float64) * 10.0 ** (share * power)
    g = torch.randn(N, K, m, generator=draw, dtype=torch.float64) * 10.0 ** ((1 - share) * power)
    f0 = torch.randn(N, K, generator=draw, dtype=torch.float64)
    jacobian = Jacobian({"only": LayerRows(x, g, torch.ones(N, dtype=torch.long))})
    return Problem(jacobian, f0, torch.arange(N) % K, CrossEntropy(), 1.0)


def wide_norm(problem: Problem, a: torch.Tensor) -> np.longdouble:
    """Return ‖M‖₂ in extended precision, whose exponents reach beyond 10^±4900."""
    rows = problem.rows.layers["only"]
    weights, g, x = (w.numpy().astype(np.longdouble) for w in (a, rows.g, rows.x))
    M = np.einsum("rk,rkm->rm", weights, g).T @ x
    unit = M / np.abs(M).max()
    vector = np.linalg.svd(unit.astype(np.float64))[2][0].astype(np.longdouble)
    for _ in range(3):
        vector = unit.T @ (unit @ vector)
        vector /= np.sqrt(vector @ vector)
    image = unit @ vector
    return np.longdouble(np.sqrt(image @ image) * np.abs(M).max())


@pytest.mark.skipif(np.finfo(np.longdouble).maxexp < 16000, reason="long double is no wider here")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.5, 0.0, 1.0])
def test_no_power_of_ten_gives_a_false_certificate(shape: tuple[int, int], share: float) -> None:
    step = 1 if share == 0.5 else 7
    for power in (*range(-300, 151, step), -161.35):
        problem = gaussian(power, share, shape, seed=abs(int(power)) % 7)
        a = problem.dual_point(problem.f0)
        exact = wide_norm(problem, a)
        bound = spectral_norm_bounds(problem, a)["only"]
        assert exact < bound <= exact * (1 + 1e-10)
        if power % 10 == 0 or power == -161.35:
            assert not certify(problem.with_lam(0.7 * float(exact)), {}).certified  # δ = 0 is no optimum
            assert certify(problem.with_lam(1.01 * float(exact)), {}).certified  # here it is


@pytest.mark.parametrize("power", [156, 160, 200, 290])
@pytest.mark.parametrize("share", [0.5, 0.0, 1.0])
def test_gradients_whose_squares_overflow_are_refused(power: float, share: float) -> None:
    with pytest.raises(InputError, match=r"whose squares overflow in float64, expected less than 1e\+154"):
        gaussian(power, share, (6, 5))


def test_the_norm_of_subnormal_numbers_is_bounded() -> None:
    for power in (-1074, -1060, -1030, -1022, -1000, -540):
        matrix = torch.ones(80, 70, dtype=torch.float64) * 2.0**-500 * 2.0 ** (power + 500)
        exact = math.sqrt(80 * 70)
        assert norm_bound(matrix) >= exact * 2.0**power
        assert norm_bound(matrix) <= exact * 2.0**power * (1 + 1e-10) + 2.0**-1073
    for bad in (math.nan, math.inf):
        assert norm_bound(torch.full((70, 80), bad, dtype=torch.float64)) == math.inf


@pytest.mark.parametrize("lam", [5e-324, 1e-320, 1e-308])
def test_a_subnormal_penalty_proves_nothing_false(lam: float) -> None:
    certificate = certify(gaussian(0, 0.5, (6, 5)).with_lam(lam), {})
    assert not certificate.certified
    assert certificate.dual_scale * max(certificate.spectral_norms.values()) <= lam


def test_what_rows_lose_below_the_normal_numbers_counts() -> None:
    """x is as large as g is small: a·g is subnormal, while the gradient M is not."""
    given = gaussian(0, 0.5, (6, 5))
    rows = given.rows.layers["only"]
    tiny = replace(rows, x=1e150 * rows.x, g=1e-315 * rows.g)
    problem = replace(given, jacobian=Jacobian({"only": tiny}))
    a = problem.dual_point(problem.f0)
    assert wide_norm(problem, a) < spectral_norm_bounds(problem, a)["only"]


@pytest.mark.parametrize("part", ["x", "g", "f0"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(part: str, bad: float) -> None:
    given = gaussian(0, 0.5, (6, 5))
    rows = given.rows.layers["only"]
    x, g, f0 = (w.clone() for w in (rows.x, rows.g, given.f0))
    {"x": x, "g": g, "f0": f0}[part].view(-1)[7] = bad
    with pytest.raises(InputError, match="outputs or gradients that are not finite"):
        Problem(Jacobian({"only": LayerRows(x, g, rows.counts)}), f0, given.y, given.loss, 1.0)


def test_outputs_near_the_end_of_float64() -> None:
    problem = gaussian(0, 0.5, (6, 5))
    far = certify(replace(problem, f0=1e300 * problem.f0), {})
    assert math.isfinite(far.objective)
    assert far.gap >= 0
    regression = Problem(problem.jacobian, 1e300 * problem.f0, torch.zeros(30, 3), Squared(), 1.0)
    with pytest.raises(
        InputError, match=r"so large that the objective inf .* expected numbers whose squares"
    ):
        certify(regression, {})


@pytest.mark.parametrize("power", [-300, -170, -100, 100, 150])
def test_the_bound_on_ranks_moves_with_the_scale(power: float) -> None:
    for shape in ((6, 5), (20, 15)):
        given, problem = gaussian(0, 0.5, shape), gaussian(power, 0.5, shape)
        expected = operator_norm_bound(given.contrasted.rows)
        found = operator_norm_bound(problem.contrasted.rows)
        assert found == pytest.approx(expected * 10.0**power, rel=1e-6, abs=0)
        top = max(certify(given, {}).spectral_norms.values())
        plain, scaled = (p.with_lam(1.5 * top * s) for p, s in ((given, 1.0), (problem, 10.0**power)))
        assert rank_bound(scaled, {}).ranks == rank_bound(plain, {}).ranks


def as_store(problem: Problem) -> Store:
    """Return the problem's Jacobian as verification reads one."""
    layers = {}
    for name, rows in problem.rows.layers.items():
        x, g = rows.x.numpy(), rows.g.numpy()
        sizes = np.linalg.norm(g, axis=2) * np.linalg.norm(x, axis=1)[:, None]
        layers[name] = Layer(x, g, rows.counts.numpy(), sizes)
    shard = Shard(np.arange(len(problem.f0)), layers)
    return Store(problem.f0.numpy(), dict(problem.jacobian.shapes), [lambda: shard], "key")


def random_scales(seed: int) -> tuple[Problem, dict[str, Any]]:
    """Return a problem and factors whose rows, layers, outputs, λ and sizes are many powers of ten apart."""
    draw = torch.Generator().manual_seed(seed)

    def power(reach: float) -> float:
        return 10.0 ** (reach * (2 * float(torch.rand((), generator=draw)) - 1))

    loss = ("cross_entropy", "logistic", "squared")[seed % 3]
    shapes = ((70, 66), (4, 7)) if seed % 10 == 0 else ((6, 5), (4, 7))
    given = random_problem(seed, loss, shapes=shapes)
    layers = {}
    for name, rows in given.rows.layers.items():
        spread = torch.tensor([power(3) for _ in range(8)], dtype=torch.float64)
        layers[name] = replace(rows, x=power(4) * spread[rows.example].unsqueeze(1) * rows.x)
    y = power(3) * given.y if loss == "squared" else given.y
    problem = Problem(Jacobian(layers), power(4) * given.f0, y, given.loss, power(6))
    factors = random_factors(problem.jacobian, (2, 1) if seed % 4 else (0, 0))
    return problem, {name: (power(4) * u, power(4) * v) for name, (u, v) in factors.items()}


def test_a_genuine_certificate_agrees_with_the_second_computation_at_any_scale() -> None:
    for seed in range(200):
        problem, factors = random_scales(seed)
        certificate = asdict(certify(problem, factors))
        arrays = {name: (u.numpy(), v.numpy()) for name, (u, v) in factors.items()}
        answer = Answer(arrays, problem.y.numpy())
        found = recomputation(as_store(problem), answer, problem.loss.name, problem.lam, 1e-6)
        assert differences(certificate, found) == [], seed


def test_the_margin_of_no_update_is_finite_at_the_largest_penalty() -> None:
    problem = replace(random_problem(), lam=1e308)
    certificate = certify(problem, problem.zero())
    assert certificate.certified
    assert certificate.rounding < 1e-12
