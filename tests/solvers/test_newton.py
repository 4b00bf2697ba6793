from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from known_problems import KNOWN, known_problem, rescaled
from random_jacobians import random_factors
from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.solvers import local_model, newton as newton_module
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.local_model import LocalModel
from tangentlora.solvers.newton import newton, sharpness

FORMS = ["given", "reduced"]


def posed(name: str, form: str) -> Problem:
    problem = known_problem(name)
    return problem if form == "given" else problem.reduced[0]


def factored(problem: Problem, model: LocalModel, vector: Tensor) -> Tensor:
    """Return F as a differentiable function of the stacked factors, from the dense Jacobian."""
    z, penalty = problem.f0, torch.zeros(()).double()
    for name, (u, v) in model.unpack(vector).items():
        z = z + torch.einsum("ikmn,mr,nr->ik", problem.jacobian.dense()[name], u, v)
        penalty = penalty + 0.5 * (u.square().sum() + v.square().sum())
    return problem.loss.value(z, problem.y).mean() + problem.lam * penalty


def hessian(problem: Problem, model: LocalModel) -> Tensor:
    x = model.pack(model.factors)
    return torch.autograd.functional.hessian(lambda vector: factored(problem, model, vector), x)


@pytest.mark.parametrize("formed", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", KNOWN)
def test_value_gradient_and_hessian_are_those_of_autograd(name: str, form: str, formed: bool) -> None:
    problem = posed(name, form)
    model = LocalModel(problem, random_factors(problem.jacobian, (2, 1, 3)), formed=formed)
    x = model.pack(model.factors).requires_grad_()
    value = factored(problem, model, x)
    assert model.value == pytest.approx(float(value.detach()), rel=1e-12)
    torch.testing.assert_close(model.gradient, torch.autograd.grad(value, x)[0], rtol=0, atol=1e-8)
    exact = hessian(problem, model)
    columns = [model.hessian_product(e) for e in torch.eye(len(x)).double()]
    torch.testing.assert_close(torch.stack(columns, 1), exact, rtol=0, atol=1e-8)
    largest = float(torch.linalg.eigvalsh(exact).abs().max())
    assert 0.9 * largest <= sharpness(problem, model.factors) <= largest * (1 + 1e-12)


@pytest.mark.parametrize("limit", [1024, 0])  # with 0 it is made of the sample, which holds all of so few
@pytest.mark.parametrize("ranks", [(1, 0, 0), (4, 4, 4)])
@pytest.mark.parametrize("name", ["cross_entropy, three layers", "squared, three layers"])
def test_the_preconditioner_inverts_the_hessian_without_the_gradient_of_the_loss(
    name: str, ranks: tuple[int, ...], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = posed(name, "reduced")
    monkeypatch.setattr(local_model, "_FACTOR_LIMIT", limit)
    model = LocalModel(problem, random_factors(problem.jacobian, ranks))
    g = torch.randn_like(model.gradient)
    cross = {
        layer: (M @ v, M.T @ u)
        for (layer, M), (u, v) in zip(model.loss_gradient.items(), model.unpack(g).values(), strict=True)
    }
    product = model.hessian_product(g) - model.pack(cross)
    torch.testing.assert_close(model.precondition(product), g, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("ranks", [(1, 0, 0), (3, 2, 4)])
@pytest.mark.parametrize("name", ["cross_entropy, three layers", "squared, three layers"])
def test_a_lowered_preconditioner_is_less_along_the_leading_pairs(name: str, ranks: tuple[int, ...]) -> None:
    problem = posed(name, "reduced")
    torch.manual_seed(0)
    model = LocalModel(problem, random_factors(problem.jacobian, ranks), lowered=True)
    lam, d = problem.lam, len(model.gradient)
    P = lam * torch.eye(d).double()
    for layer, (a, sigma, b) in model.pairs.items():
        torch.testing.assert_close(model.loss_gradient[layer] @ b, a * sigma)
        for i, s in enumerate(sigma.tolist()):
            for c in torch.eye(model.factors[layer][0].shape[1]).double():
                along = {name: (0 * u, 0 * v) for name, (u, v) in model.factors.items()}
                along[layer] = torch.outer(a[:, i], c), -torch.outer(b[:, i], c)
                direction = model.pack(along) / 2**0.5
                P -= min(s, 0.9 * lam) * torch.outer(direction, direction)
    assert model.design is not None
    P += model.design.T @ model.design
    assert sum(len(sigma) for _, sigma, _ in model.pairs.values())
    g = torch.randn(d, dtype=torch.float64)
    torch.testing.assert_close(model.precondition(P @ g), g, rtol=1e-7, atol=1e-8)
    assert not torch.allclose(LocalModel(problem, model.factors).precondition(P @ g), g)


def test_after_every_step_another_point_may_be_taken_and_the_end_said() -> None:
    problem = posed("squared, three layers", "reduced")
    start = random_factors(problem.jacobian, (2, 1, 2))
    seen: list[float] = []

    def between(model: LocalModel, reached: Factors) -> Factors:
        assert problem.factored_objective(reached) < model.value
        seen.append(model.value)
        first = next(iter(reached))
        u, v = reached[first]
        return reached | {first: (u[:, :0], v[:, :0])}  # a layer may lose all its columns

    found = newton(problem, start, tolerance=1e-9, between=between)
    assert len(seen) > 1
    assert [u.shape[1] for u, _ in found.factors.values()] == [0, 1, 2]
    assert found.gradient_norm <= 1e-9
    asked: list[float] = []

    def enough(model: LocalModel) -> bool:
        asked.append(model.value)
        return len(asked) == 2

    ended = newton(problem, start, tolerance=1e-9, enough=enough)
    assert len(asked) == 2
    assert ended.gradient_norm > 1e-9
    assert problem.factored_objective(ended.factors) == pytest.approx(asked[-1], rel=1e-12)
    nothing = newton(problem, start, tolerance=1e-9, between=lambda _, reached: problem.zero())
    assert not any(u.shape[1] for u, _ in nothing.factors.values())


def test_a_step_that_fails_is_shortened_without_further_products() -> None:
    problem = posed("squared, one output", "reduced")
    model = LocalModel(problem, random_factors(problem.jacobian))
    step = newton_module._steihaug(model, 0.1)
    short = step.shortened(model.gradient)
    assert step.products > 0
    assert short.products == 0
    assert short.size == pytest.approx(step.size / 4)
    torch.testing.assert_close(short.p, step.p / 4)
    Hp = model.hessian_product(short.p)
    assert short.promised == pytest.approx(-float(model.gradient @ short.p + 0.5 * (short.p @ Hp)), rel=1e-9)


def test_the_correction_takes_back_what_the_bilinear_term_adds() -> None:
    problem = posed("squared, three layers", "reduced")
    model = LocalModel(problem, random_factors(problem.jacobian, (3, 3, 2)))
    d = torch.randn_like(model.gradient)
    d = d / d.norm()

    def missed(step: Tensor, extra: Tensor) -> float:
        linear = LocalModel(problem, model.factors)
        moved = linear.moved(step + extra).z - model.z
        return float((moved - (model.moved(1e-6 * step).z - model.z) / 1e-6).norm())

    step = 0.1 * d
    assert missed(step, model.correction(step)) < 0.1 * missed(step, 0 * step)


def test_packing_is_undone_by_unpacking_and_layers_of_rank_zero_have_no_entries() -> None:
    problem = known_problem("squared, three layers")
    factors = random_factors(problem.jacobian, (2, 0, 1))
    model = LocalModel(problem, factors)
    back = model.unpack(model.pack(model.factors))
    assert list(back) == [name for name, (u, _) in factors.items() if u.shape[1]]
    assert all(torch.equal(a, b) for name in back for a, b in zip(back[name], factors[name], strict=True))
    assert model.value == pytest.approx(problem.factored_objective(factors), rel=1e-14)
    nothing = newton(problem, problem.zero(), tolerance=1e-9)
    assert nothing.products == 0
    assert nothing.gradient_norm == 0
    assert all(u.shape[1] == 0 for u, _ in nothing.factors.values())


@pytest.mark.parametrize("name", KNOWN)
def test_f_never_rises_and_the_gradient_vanishes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = posed(name, "reduced")
    values: list[float] = []
    step = newton_module._steihaug

    def recorded(model: LocalModel, radius: float) -> newton_module._Step:
        values.append(model.value)
        return step(model, radius)

    monkeypatch.setattr(newton_module, "_steihaug", recorded)
    result = newton(problem, random_factors(problem.jacobian, (2, 0, 2)), tolerance=1e-9, max_steps=300)
    values.append(problem.factored_objective(result.factors))
    assert all(after <= before + 1e-13 for before, after in pairwise(values))
    assert values[-1] < values[0]
    assert result.gradient_norm <= 1e-9
    assert result.factors[next(iter(result.factors))][0].shape[1] == 2
    curvature = hessian(problem, LocalModel(problem, result.factors))
    assert torch.linalg.eigvalsh(curvature)[0] > -1e-6  # no saddle


@pytest.mark.parametrize("name", KNOWN)
def test_near_the_optimum_it_converges_faster_than_linearly(name: str) -> None:
    problem = posed(name, "reduced")
    optimum = Certified().solve(problem).factors
    near = {layer: (1.01 * u, v + 0.01 * v.norm() * torch.randn_like(v)) for layer, (u, v) in optimum.items()}
    first = float(LocalModel(problem, near).gradient.norm())
    norms = [newton(problem, near, tolerance=0.0, max_steps=k).gradient_norm for k in range(2, 12)]
    assert norms[-1] <= 1e-8 * first
    reached = next(k for k, norm in enumerate(norms) if norm <= 1e-8 * first)
    assert norms[reached] <= 1e-2 * norms[reached - 1]


def test_scales_of_the_jacobian_change_the_answer_only_by_their_inverse() -> None:
    problem = posed("logistic, one layer", "given")
    large = rescaled(problem, [1e6])
    scaled = Problem(large.jacobian, large.f0, large.y, large.loss, 1e6 * problem.lam)
    start = random_factors(problem.jacobian)
    shrunk: Factors = {name: (1e-3 * u, 1e-3 * v) for name, (u, v) in start.items()}
    ours = newton(problem, start, tolerance=1e-10)
    theirs = newton(scaled, shrunk, tolerance=1e-7)
    assert ours.products == theirs.products
    for name, (u, _) in ours.factors.items():
        torch.testing.assert_close(1e3 * theirs.factors[name][0], u, rtol=1e-5, atol=1e-6)


def test_a_budget_of_products_is_kept() -> None:
    problem = posed("squared, three layers", "reduced")
    start = random_factors(problem.jacobian)
    assert newton(problem, start, tolerance=0.0, max_products=1).products < 40
    assert (
        newton(problem, start, tolerance=0.0).gradient_norm < 1e-9
    )  # and rounding ends it without a tolerance
