"""Theorem 3: its constants against dense algebra, the bounds on held-out data, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product as combinations

import pytest
import torch

from known_problems import largest_lam
from random_jacobians import random_jacobian
from random_problems import random_problem
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import product_singular_values
from tangentlora.solvers.certified import Certified
from tangentlora.theory.bounds import block_norms, generalisation, rademacher_complexity


def halves(problem: Problem) -> tuple[Problem, Problem]:
    """Return a problem of the even and one of the odd examples."""
    n = len(problem.f0)
    parts = []
    for first in (0, 1):
        index = list(range(first, n, 2))
        parts.append(
            replace(
                problem, jacobian=problem.jacobian.select(index), f0=problem.f0[index], y=problem.y[index]
            )
        )
    return parts[0], parts[1]


@pytest.mark.parametrize("seed", range(6))
def test_block_norms_are_those_of_the_dense_blocks(seed: int) -> None:
    jacobian = random_jacobian(seed)
    frobenius, spectral = block_norms(jacobian)
    dense = list(jacobian.dense().values())
    squares = sum(blocks.square().sum((2, 3)) for blocks in dense)
    torch.testing.assert_close(frobenius.square(), torch.as_tensor(squares))
    largest = torch.stack([torch.linalg.matrix_norm(blocks, 2) for blocks in dense]).amax(0)
    torch.testing.assert_close(spectral, largest)


@pytest.mark.parametrize("seed", range(3))
def test_the_complexity_is_the_mean_over_all_signs(seed: int) -> None:
    jacobian = random_problem(seed, n_examples=4, n_outputs=2).contrasted.jacobian
    blocks = jacobian.dense()
    values = []
    for signs in combinations((-1.0, 1.0), repeat=4):
        sign = torch.tensor(signs, dtype=torch.float64).reshape(4, 1, 1, 1)
        values.append(
            max(float(torch.linalg.matrix_norm((sign * J).sum((0, 1)) / 4, 2)) for J in blocks.values())
        )
    exact = sum(values) / len(values)
    found = rademacher_complexity(jacobian, draws=400, seed=seed)
    assert abs(found.mean - exact) <= 4 * found.standard_error
    spread = torch.tensor(values, dtype=torch.float64).std(correction=0)
    assert found.standard_error == pytest.approx(float(spread) / 20, rel=0.15)
    assert found == rademacher_complexity(jacobian, draws=400, seed=seed)
    assert found != rademacher_complexity(jacobian, draws=400, seed=seed + 1)


def test_the_nuclear_ball_is_dual_to_the_largest_spectral_norm() -> None:
    jacobian = random_problem(0).jacobian
    sign = torch.sign(torch.randn(8, 3, dtype=torch.float64))
    M = jacobian.adjoint(sign / 8)
    name, block = max(M.items(), key=lambda item: float(torch.linalg.matrix_norm(item[1], 2)))
    left, sigma, right = torch.linalg.svd(block)
    best = {name: (left[:, :1], right[:1].T)}  # nuclear norm 1
    assert float((sign / 8 * jacobian.at(best).forward()).sum()) == pytest.approx(float(sigma[0]))
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        trial = {
            t: tuple(torch.randn(side, 2, generator=generator, dtype=torch.float64) for side in shape)
            for t, shape in jacobian.shapes.items()
        }
        norm = sum(float(product_singular_values(u, v).sum()) for u, v in trial.values())
        value = float((sign / 8 * jacobian.at(trial).forward()).sum()) / norm  # type: ignore[arg-type]
        assert value <= float(sigma[0]) * (1 + 1e-12)


def test_every_number_is_that_of_the_formulas() -> None:
    train, held = halves(random_problem(1, n_examples=40))
    train = replace(train, lam=0.3 * largest_lam(train))
    factors = Certified().solve(train).factors
    said = generalisation(train, factors, held, eta=0.1, epsilon=0.5, draws=50, seed=3)
    R = max(
        float(sum(J.square().sum((2, 3)) for J in p.jacobian.dense().values()).sqrt().max())
        for p in (train, held)
    )
    lam = 2 * 2.5 * math.sqrt(3) * math.sqrt(2) * R / math.sqrt(20) * (2 + math.sqrt(math.log(10)))
    norm = sum(float(torch.linalg.matrix_norm(u @ v.T, "nuc")) for u, v in factors.values())
    r, m = said.recalled, said.measured
    assert (r.R, r.lam, r.radius) == pytest.approx((R, lam, norm))
    assert r.excess == pytest.approx(
        norm * 2 * 2.5**2 * math.sqrt(3 * 2) * R / math.sqrt(20) * (2 + math.sqrt(math.log(10)))
    )
    assert r.zero_from == pytest.approx(largest_lam(train))
    assert norm <= m.radius < 2 * norm
    j = round(math.log2(m.radius))
    assert m.confidence_spent == pytest.approx(0.1 / (3 * (1 + abs(j)) ** 2))
    spectral = [
        torch.stack([torch.linalg.matrix_norm(J, 2) for J in p.contrasted.jacobian.dense().values()]).amax(0)
        for p in (train, held)
    ]
    rho = max(float(s.square().sum(1).max()) ** 0.5 for s in spectral)
    assert m.rho == pytest.approx(rho)
    G, D = math.sqrt(2), m.radius
    complexity = rademacher_complexity(train.contrasted.jacobian, 50, 3)
    assert m.complexity == complexity
    assert m.complexity_term == pytest.approx(
        2 * math.sqrt(2) * G * D * (complexity.mean + 2 * complexity.standard_error)
    )
    assert m.deviation_term == pytest.approx(
        6 * G * D * rho * math.sqrt(math.log(2 / m.confidence_spent) / 40)
    )
    before = held.empirical_loss(held.f0) - train.empirical_loss(train.f0)
    assert m.bound == pytest.approx(said.train_loss + before + m.complexity_term + m.deviation_term)
    assert said.held_out_loss == pytest.approx(held.empirical_loss(held.outputs(factors)))
    assert m.trivial == pytest.approx(min(held.empirical_loss(held.f0), math.log(3)))


def test_the_powers_of_two_spend_no_more_than_eta() -> None:
    assert sum(1 / (3 * (1 + abs(j)) ** 2) for j in range(-10_000, 10_001)) <= 1


def test_the_range_that_the_deviation_uses_holds_for_any_update_of_the_ball() -> None:
    problem = random_problem(2)
    said = generalisation(problem, Certified().solve(problem).factors, draws=2)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        factors = {
            t: tuple(torch.randn(side, 2, generator=generator, dtype=torch.float64) for side in shape)
            for t, shape in problem.jacobian.shapes.items()
        }
        D = sum(float(product_singular_values(u, v).sum()) for u, v in factors.values())
        z = problem.outputs(factors)  # type: ignore[arg-type]
        moved = (problem.loss.value(z, problem.y) - problem.loss.value(problem.f0, problem.y)).abs().max()
        assert float(moved) <= said.lipschitz * D * said.measured.rho


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic"])
@pytest.mark.parametrize("share", [0.9, 0.3, 0.03])
def test_the_bounds_hold_on_held_out_examples(loss: str, share: float) -> None:
    for seed in range(5):
        train, held = halves(random_problem(seed, loss, n_examples=60))
        train = replace(train, lam=share * largest_lam(train))
        said = generalisation(train, Certified().solve(train).factors, held, draws=20)
        assert said.held_out_loss is not None
        assert said.held_out_loss <= said.measured.bound
        # Theorem 3 for any δ in the place of δ°, as its proof uses P(δ̂) ≤ P(δ) alone
        prescribed = Certified().solve(train.with_lam(said.recalled.lam))
        loss_of = held.empirical_loss(held.outputs(prescribed.factors))
        assert loss_of - said.held_out_loss < said.recalled.excess


def test_many_easy_examples_give_a_bound_that_says_something() -> None:
    one = random_problem(0, "logistic", n_examples=1, shapes=((2, 2),))
    n = 20_000
    signs = torch.where(torch.arange(n) % 2 == 0, 1, -1)
    jacobian = one.jacobian.select([0] * n)
    rows = jacobian.layers["layer.0"]
    turned = replace(rows, x=rows.x * signs.double().repeat_interleave(rows.counts).unsqueeze(1))
    easy = Problem(replace(jacobian, layers={"layer.0": turned}), torch.zeros(n, 1), signs, one.loss, 0.0)
    easy = replace(easy, lam=0.6 * largest_lam(easy))
    said = generalisation(easy, Certified().solve(easy).factors, draws=20)
    assert not said.measured.vacuous
    assert said.measured.bound < said.train_loss_before
    assert "vacuous" not in said.sentences()[0]
    assert said.held_out_loss is None


def test_few_examples_give_vacuous_bounds_and_say_so() -> None:
    problem = random_problem(0)
    said = generalisation(problem, Certified().solve(problem).factors, draws=5)
    assert said.measured.vacuous
    assert said.recalled.vacuous
    measured, recalled, constants = said.sentences()
    assert (
        f"(vacuous: not below {said.measured.trivial:.4g}, the smaller of the loss before training"
        in measured
    )
    assert recalled.startswith("Theorem 3 [recalled] prescribes λ = ")
    assert ", at which the answer is δ = 0, and bounds" in recalled
    assert " (vacuous), if the optimum's nuclear norm is" in recalled
    assert "the bounds need them for the whole population" in constants


def test_a_bound_names_the_rows_whose_loss_before_training_it_takes_for_that_of_unseen_examples() -> None:
    train, held = halves(random_problem(0, n_examples=40))
    factors = Certified().solve(train).factors
    for others, rows in ((None, "training"), (held, "held-out")):
        said = generalisation(train, factors, others, draws=5)
        before = (others or train).empirical_loss((others or train).f0)
        assert f", if before training it is the {before:.4g} of the {rows} rows." in said.sentences()[0]
        assert "trivially" not in said.sentences()[0]


def test_doing_nothing_is_bounded_by_the_loss_before() -> None:
    problem = random_problem(0)
    said = generalisation(problem, problem.zero(), draws=5)
    assert said.measured.radius == 0
    assert said.measured.bound == pytest.approx(said.train_loss_before)
    (sentence,) = said.sentences()  # and no bound is claimed, since the loss before was itself measured
    assert sentence.startswith("The answer is δ = 0: nothing was learnt")


def test_what_cannot_be_bounded_is_refused() -> None:
    squared = random_problem(0, "squared")
    with pytest.raises(InputError, match="got the squared loss, which has no Lipschitz constant"):
        generalisation(squared, squared.zero())
    problem = random_problem(0)
    for eta, epsilon in ((0.0, 0.1), (1.0, 0.1), (0.1, 0.0)):
        with pytest.raises(InputError, match=f"got η = {eta} and ε = {epsilon}"):
            generalisation(problem, problem.zero(), eta=eta, epsilon=epsilon)
    with pytest.raises(InputError, match="got 1 draws of signs, expected at least 2"):
        generalisation(problem, problem.zero(), draws=1)
    with pytest.raises(InputError, match="got 4 outputs held out and 3 in training"):
        generalisation(problem, problem.zero(), random_problem(0, n_outputs=4))
