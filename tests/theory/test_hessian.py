from __future__ import annotations

import pytest
import torch
from torch import Tensor

from random_problems import random_problem
from spurious_problems import SADDLE, SPURIOUS, Planted
from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.solvers.factored import perturbation
from tangentlora.theory import curvature, hessian as module
from tangentlora.theory.curvature import lowest
from tangentlora.theory.hessian import Hessian

SHAPES = [((4, 3),), ((4, 3), (2, 5)), ((3, 3), (2, 4), (4, 2))]
RANKS = (2, 3, 1)


def posed(loss: str, shapes: tuple[tuple[int, int], ...], form: str, noisy: bool) -> Hessian:
    problem = random_problem(1, loss, 0.07, n_examples=4, shapes=shapes)
    problem = {"given": problem, "contrasted": problem.contrasted, "reduced": problem.reduced[0]}[form]
    noise = perturbation(problem.jacobian.shapes, 0.3, 0, problem.f0) if noisy else {}
    return Hessian(problem, drawn(problem, RANKS), noise)


def drawn(problem: Problem, ranks: tuple[int, ...]) -> Factors:
    return {
        name: (torch.randn(m, r).double(), torch.randn(n, r).double())
        for (name, (m, n)), r in zip(problem.jacobian.shapes.items(), ranks, strict=False)
    }


def factored(hessian: Hessian, vector: Tensor) -> Tensor:
    """Return F_Π as a differentiable function of the stacked factors, from the dense Jacobian."""
    problem = hessian.problem
    z, penalty = problem.f0, torch.zeros(()).double()
    for name, (u, v) in hessian.unpack(vector).items():
        z = z + torch.einsum("ikmn,mr,nr->ik", problem.jacobian.dense()[name], u, v)
        penalty = penalty + problem.lam / 2 * (u.square().sum() + v.square().sum())
        if name in hessian.noise:
            q = torch.cat([u, v])
            penalty = penalty + torch.trace(hessian.noise[name] @ q @ q.T)
    return problem.loss.value(z, problem.y).mean() + penalty


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("form", ["given", "contrasted", "reduced"])
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_value_gradient_and_products_are_those_of_autograd(
    loss: str, shapes: tuple[tuple[int, int], ...], form: str, noisy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hessian = posed(loss, shapes, form, noisy)
    x = hessian.pack(hessian.factors).requires_grad_()
    value = factored(hessian, x)
    exact = torch.autograd.functional.hessian(lambda vector: factored(hessian, vector), x.detach())
    assert hessian.value == pytest.approx(float(value.detach()), rel=1e-12)
    torch.testing.assert_close(hessian.gradient, torch.autograd.grad(value, x)[0], rtol=0, atol=1e-8)
    torch.testing.assert_close(hessian.dense(), exact, rtol=0, atol=1e-8)
    d = torch.randn_like(hessian.gradient)
    torch.testing.assert_close(hessian.product(d), exact @ d, rtol=0, atol=1e-8)
    monkeypatch.setattr(module, "_DESIGN_LIMIT", 0)
    fresh = Hessian(hessian.problem, hessian.factors, hessian.noise)
    torch.testing.assert_close(fresh.product(d), exact @ d, rtol=0, atol=1e-8)
    assert hessian.moved(d).value == pytest.approx(float(factored(hessian, x.detach() + d)), rel=1e-12)


@pytest.mark.parametrize("noisy", [False, True])
def test_the_slack_matrix_gives_the_gradient_and_the_curvature_of_unused_columns(noisy: bool) -> None:
    hessian = posed("cross_entropy", SHAPES[1], "given", noisy)
    padded = {
        t: (torch.cat([u, 0 * u[:, :1]], 1), torch.cat([v, 0 * v[:, :1]], 1))
        for t, (u, v) in hessian.factors.items()
    }
    wide = Hessian(hessian.problem, padded, hessian.noise)
    direction = {t: (0 * u, 0 * v) for t, (u, v) in padded.items()}
    for name, (u, v) in padded.items():
        S = wide.slack(name)
        up, down = wide.unpack(wide.gradient)[name]
        torch.testing.assert_close(S @ torch.cat([u, v]), torch.cat([up, down]))
        assert float(torch.linalg.matrix_norm(S, 2)) <= wide.slack_norm(name) * (1 + 1e-12)
        w = torch.randn(len(u) + len(v)).double()
        one = {t: (U.clone(), V.clone()) for t, (U, V) in direction.items()}
        one[name][0][:, -1], one[name][1][:, -1] = w[: len(u)], w[len(u) :]
        d = wide.pack(one)
        torch.testing.assert_close(d @ wide.product(d), w @ S @ w)
        torch.testing.assert_close(wide.product(d), wide.pack(one | {name: pinned(one[name], S @ w)}))


def pinned(like: tuple[Tensor, Tensor], column: Tensor) -> tuple[Tensor, Tensor]:
    U, V = torch.zeros_like(like[0]), torch.zeros_like(like[1])
    U[:, -1], V[:, -1] = column[: len(U)], column[len(U) :]
    return U, V


@pytest.mark.parametrize("ranks", [(3, 4, 1), (1, 2, 2), (8, 8, 8)])
def test_rotations_are_projected_out_and_nothing_else(ranks: tuple[int, ...]) -> None:
    problem = random_problem(2, "squared", shapes=SHAPES[2])
    hessian = Hessian(problem, drawn(problem, ranks))
    kept = torch.stack([hessian.without_rotations(e) for e in torch.eye(len(hessian.gradient)).double()])
    torch.testing.assert_close(kept, kept.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(kept @ kept, kept, rtol=0, atol=1e-10)
    turns = []
    for name, (u, v) in hessian.factors.items():
        for i in range(u.shape[1]):
            for j in range(i):
                omega = torch.zeros(u.shape[1], u.shape[1]).double()
                omega[i, j], omega[j, i] = 1.0, -1.0
                zero = {t: (0 * a, 0 * b) for t, (a, b) in hessian.factors.items()}
                turns.append(hessian.pack(zero | {name: (u @ omega, v @ omega)}))
    for turn in turns:
        assert float(hessian.without_rotations(turn).norm()) < 1e-9 * float(turn.norm())
    dimension = int(torch.linalg.matrix_rank(torch.stack(turns))) if turns else 0
    R = hessian.rotations
    torch.testing.assert_close(R.T @ R, torch.eye(dimension).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(kept, torch.eye(len(kept)).double() - R @ R.T, rtol=0, atol=1e-10)
    assert float(torch.trace(kept)) == pytest.approx(len(hessian.gradient) - dimension, abs=1e-8)


def test_rotations_are_zeros_of_the_hessian_at_a_stationary_point_only() -> None:
    planted = Planted(seed=3)
    u, v = planted.at(1)["layer"]
    at_rest = Hessian(planted.problem, {"layer": (torch.cat([u, 0 * u], 1), torch.cat([v, 0 * v], 1))})
    omega = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
    turn = at_rest.pack({name: (a @ omega, b @ omega) for name, (a, b) in at_rest.factors.items()})
    assert float(at_rest.product(turn).norm()) < 1e-12
    elsewhere = at_rest.moved(torch.randn_like(turn))
    turn = elsewhere.pack({name: (a @ omega, b @ omega) for name, (a, b) in elsewhere.factors.items()})
    assert float(elsewhere.product(turn).norm()) > 1e-3


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_lanczos_finds_the_lowest_eigenvalue_that_the_dense_matrix_has(
    loss: str, noisy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hessian = posed(loss, SHAPES[2], "contrasted", noisy)
    exact = lowest(hessian)
    monkeypatch.setattr(curvature, "DENSE", 0)
    found = lowest(hessian, precision=1e-10)
    kept = torch.stack([hessian.without_rotations(e) for e in torch.eye(len(hessian.gradient)).double()])
    values = torch.linalg.eigvalsh(kept @ hessian.dense() @ kept)
    assert exact.value == pytest.approx(float(values[0]), abs=1e-10)  # random factors: it is negative
    assert found.value == pytest.approx(exact.value, abs=1e-9)
    assert found.error < 1e-6
    assert float(found.vector @ hessian.product(found.vector)) == pytest.approx(found.value, abs=1e-12)
    assert float(found.vector.norm()) == pytest.approx(1.0, abs=1e-12)


def test_lanczos_says_when_it_has_not_converged() -> None:
    problem = random_problem(2, "squared", shapes=((30, 30),), n_examples=40)
    small = {"layer.0": tuple(1e-3 * torch.randn(30, 11).double() for _ in range(2))}
    hessian = Hessian(problem.with_lam(10.0), small)  # type: ignore[arg-type]
    assert lowest(hessian, max_restarts=1, precision=1e-13).error == float("inf")
    assert lowest(hessian).error < 1e-6


@pytest.mark.parametrize(
    "planted", [SPURIOUS, SADDLE, Planted(seed=1, m=5, n=6), Planted(w=0.3, t=0.1, lam=0.1)]
)
def test_planted_points_have_the_eigenvalues_of_their_derivation(planted: Planted) -> None:
    hessian = Hessian(planted.problem, planted.at(-1))
    assert float(hessian.gradient.norm()) < 1e-12
    exact = torch.autograd.functional.hessian(
        lambda vector: factored(hessian, vector), hessian.pack(hessian.factors)
    )
    expected = torch.tensor(planted.eigenvalues, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.eigvalsh(exact), expected, rtol=0, atol=1e-12)
    assert hessian.value == pytest.approx(planted.value(-1), abs=1e-13)
    assert planted.problem.factored_objective(planted.at(1)) == pytest.approx(planted.value(1), abs=1e-13)
    assert planted.value(1) < planted.value(-1)
    d = hessian.pack(planted.direction())
    assert float(d @ hessian.product(d)) == pytest.approx(
        (planted.square * (1 - planted.w) - planted.w * planted.t) / 2, abs=1e-13
    )


def test_the_planted_minimum_is_one_by_brute_force_and_the_planted_saddle_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    for planted, expected in ((SPURIOUS, True), (SADDLE, False)):
        hessian = Hessian(planted.problem, planted.at(-1))
        around = [torch.randn(8, generator=generator, dtype=torch.float64) for _ in range(400)]
        higher = [hessian.moved(0.05 * d / d.norm()).value > hessian.value for d in around]
        assert all(higher) == expected
        grid = torch.cartesian_prod(*[torch.linspace(-1.5, 1.5, 31).double()] * 2)
        # F over u = v = (a, b): its lowest value on a grid is near the branch (1, 1), never below it
        w, t, lam = planted.w, planted.t, planted.lam
        a, b = grid.T
        F = ((a * a - 1) ** 2 + (b * b - 1) ** 2 + 2 * w * (a * b - t) ** 2) / 8 + lam * (a * a + b * b)
        assert planted.value(1) <= float(F.min()) < planted.value(1) + 5e-3
