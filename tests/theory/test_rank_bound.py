from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from known_problems import KNOWN, known_problem
from random_jacobians import random_factors, random_jacobian
from random_problems import random_problem
from tangentlora.blocks import Factors
from tangentlora.problem.losses import Squared
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import shrink
from tangentlora.solvers.certified import Certified
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.theory import rank_bound as module
from tangentlora.theory.certificate import certify
from tangentlora.theory.rank_bound import RankBound, operator_norm_bound, rank_bound


@cache
def optimum(name: str) -> Factors:
    return Certified(tolerance=1e-10).solve(known_problem(name)).factors


def near(factors: Factors, error: float) -> Factors:
    """Return other factors at a distance of about `error` from the given ones."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: (u + error * torch.randn(u.shape, generator=generator, dtype=u.dtype), v)
        for name, (u, v) in factors.items()
    }


@cache
def dual_by_cvxpy(name: str) -> Tensor:
    """Return ν*, (N,K), by an interior-point method, from the dense Jacobian and the conjugates."""
    problem = known_problem(name)
    n, k = problem.f0.shape
    nu = cp.Variable((n, k))
    y = problem.y.numpy()
    conditions = []
    for blocks in problem.jacobian.dense().values():
        m, width = blocks.shape[2:]
        M = blocks.numpy().reshape(n * k, -1).T @ cp.vec(nu, order="C")
        conditions.append(cp.sigma_max(cp.reshape(M, (m, width), order="C")) <= problem.lam)
    if problem.loss.name == "cross_entropy":
        q = n * nu + np.eye(k)[y]
        conjugate = -cp.sum(cp.entr(q))
        conditions.append(cp.sum(q, axis=1) == 1)
    elif problem.loss.name == "logistic":
        q = -cp.multiply(y[:, None], n * nu)
        conjugate = -cp.sum(cp.entr(q) + cp.entr(1 - q))
    else:
        conjugate = 0.5 * cp.sum_squares(n * nu) + cp.sum(cp.multiply(n * nu, y))
    objective = cp.Maximize(cp.sum(cp.multiply(nu, problem.f0.numpy())) - conjugate / n)
    cp.Problem(objective, conditions).solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10
    )
    return torch.from_numpy(np.asarray(nu.value))


@pytest.mark.parametrize("error", [0.0, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("name", KNOWN)
def test_the_dual_optimum_is_within_the_distance_and_the_bound_above_its_count(
    name: str, error: float
) -> None:
    problem, exact = known_problem(name), dual_by_cvxpy(name)
    factors = near(optimum(name), error)
    certificate, bound = certify(problem, factors), rank_bound(problem, factors)
    nu = certificate.dual_scale * problem.dual_point(problem.outputs(factors))
    assert float((nu - exact).norm()) <= bound.distance + 1e-6
    ours, theirs = problem.jacobian.adjoint(nu), problem.jacobian.adjoint(exact)
    for layer, most in bound.ranks.items():
        moved = float(torch.linalg.matrix_norm(ours[layer] - theirs[layer], 2))
        assert moved <= bound.slack[layer] + 1e-5
        active = int((torch.linalg.svdvals(theirs[layer]) >= problem.lam - 1e-7).sum())
        assert most >= active
        assert most >= certify(problem, optimum(name)).ranks[layer]
        assert bound.sides[layer] == min(problem.jacobian.shapes[layer])


@pytest.mark.parametrize("name", KNOWN)
def test_at_an_optimum_it_is_the_rank_and_loosens_away_from_it(name: str) -> None:
    problem = known_problem(name)
    bounds = [rank_bound(problem, near(optimum(name), error)) for error in (0.0, 1e-3, 1e-1, 1e3)]
    assert bounds[0].ranks == certify(problem, optimum(name)).ranks
    for tight, loose in pairwise(bounds):
        assert tight.distance < loose.distance
        assert all(tight.ranks[layer] <= loose.ranks[layer] for layer in tight.ranks)


def test_a_poor_answer_says_nothing_and_says_so() -> None:
    problem = known_problem("logistic, little penalty")
    bound = rank_bound(problem, problem.zero())
    assert bound.ranks == bound.sides == {"layer.0": 4, "layer.1": 3}
    assert bound.largest == 4
    assert bound.sentence().startswith("The gap is too large to bound the rank of the optima")


def test_a_good_one_says_how_much() -> None:
    bound = rank_bound(known_problem("squared, one output"), optimum("squared, one output"))
    assert bound.sentence() == "No optimum has a rank above 2 in any layer."
    assert RankBound({"a": 0, "b": 1}, {"a": 2, "b": 2}, 0.0, {}).largest == 1


def denoising(target: Tensor, lam: float) -> Problem:
    """Return min ½‖δ − target‖_F² + λ‖δ‖_*: one example whose outputs are the entries of δ."""
    m, n = target.shape
    # row p holds the column p of δ: its x is e_p, and its g of output (a, b) is e_a where b = p
    g = torch.einsum("pb,ac->pabc", torch.eye(n), torch.eye(m))
    rows = LayerRows(torch.eye(n), g.reshape(n, m * n, m), torch.tensor([n]))
    f0 = torch.zeros(1, m * n, dtype=torch.float64)
    return Problem(Jacobian({"layer": rows}), f0, target.reshape(1, -1), Squared(), lam)


def test_it_is_the_count_above_lambda_where_the_optimum_is_known_in_closed_form() -> None:
    left, right = (torch.linalg.qr(torch.randn(s, 4, dtype=torch.float64)).Q for s in (5, 4))
    target = left @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)) @ right.T
    for lam, rank in ((0.4, 4), (0.7, 3), (1.5, 2), (2.5, 1), (4.0, 0)):
        problem = denoising(target, lam)
        answer = {"layer": shrink(target, lam)}
        torch.testing.assert_close(problem.jacobian.forward({"layer": target}).reshape(5, 4), target)
        assert certify(problem, answer).gap == pytest.approx(0.0, abs=1e-11)
        assert rank_bound(problem, answer).ranks == {"layer": rank}


def test_a_singular_value_at_lambda_counts_though_no_optimum_uses_it() -> None:
    problem = denoising(torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)), 1.0)
    answer = {"layer": shrink(problem.y.reshape(3, 3), 1.0 + 1e-12)}
    assert certify(problem, answer).ranks == {"layer": 1}  # the only optimum: P is strictly convex here
    assert rank_bound(problem, answer).ranks == {"layer": 2}


def test_it_holds_for_every_optimum_and_not_only_for_the_one_at_hand() -> None:
    """min ½(tr δ − y)² + λ‖δ‖_* has optima of all ranks from 1; the answer given has rank 1."""
    eye = torch.eye(4, dtype=torch.float64)
    rows = LayerRows(eye, eye.unsqueeze(1), torch.tensor([4]))
    y = torch.tensor([[3.0]])
    problem = Problem(Jacobian({"layer": rows}), torch.zeros(1, 1), y, Squared(), 0.5)
    one = {"layer": (2.5**0.5 * eye[:, :1], 2.5**0.5 * eye[:, :1])}
    assert certify(problem, one).certified
    assert certify(problem, one).ranks == {"layer": 1}
    full = {"layer": ((2.5 / 4) ** 0.5 * eye, (2.5 / 4) ** 0.5 * eye)}
    assert certify(problem, full).certified
    assert rank_bound(problem, one).ranks == {"layer": 4}


def test_layers_that_can_do_the_same_count_each() -> None:
    jacobian = random_problem(2, "squared", shapes=((6, 5),)).jacobian
    twice = Jacobian({"left": jacobian.layers["layer.0"], "right": jacobian.layers["layer.0"]})
    once = random_problem(2, "squared", shapes=((6, 5),))
    problem = Problem(twice, once.f0, once.y, once.loss, 0.3)
    u, v = Certified(tolerance=1e-10).solve(once.with_lam(0.3)).factors["layer.0"]
    one_sided = {"left": (u, v)}
    assert certify(problem, one_sided).certified
    assert certify(problem, {"right": (u, v)}).certified
    bound = rank_bound(problem, one_sided)
    assert bound.ranks["left"] == bound.ranks["right"] == u.shape[1] < 5


@pytest.mark.parametrize("name", KNOWN)
def test_the_dual_is_as_strongly_concave_as_the_distance_supposes(name: str) -> None:
    """D(ν*) − D(ν) ≥ (N/2L)‖ν − ν*‖² for feasible ν; for the squared loss without constraint, "="."""
    problem = known_problem(name)
    scaled = problem.with_lam(1e6)  # no norm constrains, so D is the plain concave function
    n = len(problem.f0)
    inside = problem.dual_point(problem.f0)
    for size in (0.1, 1.0):
        other = problem.dual_point(problem.f0 + size * torch.randn_like(problem.f0))
        fall = scaled.dual_value(inside) - scaled.dual_value(other)
        least = n / (2 * problem.loss.smoothness) * float((other - inside).square().sum())
        assert fall >= least - 1e-12
        if problem.loss.name == "squared":
            assert fall == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_the_operator_norm_is_an_upper_bound_and_close(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    jacobian = random_jacobian(seed)
    for name, blocks in jacobian.dense().items():
        matrix = blocks.reshape(-1, math.prod(blocks.shape[2:]))
        exact, size = float(torch.linalg.matrix_norm(matrix, 2)), float(matrix.norm())
        bound = operator_norm_bound(jacobian.only([name]))
        assert exact <= bound <= exact * (1 + 1e-9) + 1e-6 * size
        with monkeypatch.context() as patch:
            patch.setattr(module, "_KERNEL_LIMIT", 0)
            assert size <= operator_norm_bound(jacobian.only([name])) <= size * (1 + 1e-9) + 1e-6 * size


def test_the_rounding_of_a_rank_one_kernel_is_covered() -> None:
    """ε‖J‖² is what eigvalsh may miss, so √ε‖J‖ where all of the norm cancels."""
    rows = LayerRows(
        torch.ones(2, 3), torch.tensor([1.0, -1.0]).reshape(2, 1, 1).expand(2, 1, 2), torch.tensor([2])
    )
    jacobian = Jacobian({"layer": rows}).to(torch.float64)  # J = g xᵀ − g xᵀ = 0
    assert 0 < operator_norm_bound(jacobian) < 1e-5


def test_contrasts_are_what_moves() -> None:
    """A common shift of the logits is no direction of the dual, however large its gradient."""
    problem = random_problem(3, lam=0.2)
    shifted = Jacobian(
        {
            name: replace(rows, g=rows.g + 1e3 * torch.ones(1, 3, 1, dtype=torch.float64))
            for name, rows in problem.jacobian.layers.items()
        }
    )
    moved = replace(problem, jacobian=shifted)
    answer = Certified(tolerance=1e-10).solve(problem).factors
    a = rank_bound(problem, answer)
    b = rank_bound(moved, Certified(tolerance=1e-10).solve(moved).factors)
    assert a.ranks == b.ranks
    for name, rows in moved.contrasted.jacobian.layers.items():
        torch.testing.assert_close(rows.g, problem.contrasted.jacobian.layers[name].g, rtol=1e-9, atol=1e-9)


def test_lambda_zero_says_nothing() -> None:
    problem = random_problem(0, "squared", lam=0.0)
    bound = rank_bound(problem, random_factors(problem.jacobian, (2, 2)))
    assert bound.ranks == bound.sides
