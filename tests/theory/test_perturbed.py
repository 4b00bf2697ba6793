from __future__ import annotations

import pytest
import torch

from random_jacobians import random_factors
from random_problems import random_problem
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem, nuclear_norm
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.factored import perturbation
from tangentlora.studies.rest import Start, begin, rest
from tangentlora.theory.hessian import Hessian
from tangentlora.theory.perturbed import perturbation_cost, perturbed_gap

SIZES = [1e-3, 0.1, 3.0]


def posed(loss: str, size: float) -> tuple[Problem, dict[str, torch.Tensor]]:
    problem = random_problem(6, loss, 0.05, n_examples=3, shapes=((4, 3), (3, 4)))
    return problem, perturbation(problem.jacobian.shapes, size * problem.lam, 1, problem.f0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_the_gap_of_the_perturbed_objective_bounds_the_distance_and_closes(loss: str, size: float) -> None:
    problem, noise = posed(loss, size)
    best = rest(problem, begin(problem, noise, 3, Start.SPECTRAL, 0), noise)
    least = Hessian(problem, best, noise).value
    assert -1e-13 < perturbed_gap(problem, best, noise) < 1e-8
    for scale in (1e-3, 0.1, 1.0):
        for _ in range(5):
            drawn = random_factors(problem.jacobian, (2, 3))
            point = {t: (u + scale * drawn[t][0][:, :1], v) for t, (u, v) in best.items()}
            for factors in (point, {t: (scale * u, scale * v) for t, (u, v) in drawn.items()}):
                value = Hessian(problem, factors, noise).value
                assert perturbed_gap(problem, factors, noise) >= value - least - 1e-12
                assert perturbed_gap(problem.contrasted, factors, noise) == pytest.approx(
                    perturbed_gap(problem, factors, noise), abs=1e-10
                )
    # the gap of F is another one: it does not close at the optimum of F_Π
    assert problem.gap(best) > 10 * abs(perturbed_gap(problem, best, noise))


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_without_a_perturbation_the_gap_is_the_factored_gap(loss: str) -> None:
    problem, _ = posed(loss, 1.0)
    factors = random_factors(problem.jacobian, (2, 3))
    assert perturbed_gap(problem, factors, {}) == pytest.approx(problem.gap(factors), abs=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_the_cost_bounds_what_the_perturbation_did_to_the_answer(loss: str, size: float) -> None:
    problem, noise = posed(loss, size)
    optimum = Certified(tolerance=1e-10).solve(problem)
    best = rest(problem, begin(problem, noise, 3, Start.SPECTRAL, 0), noise)
    excess = problem.objective(best) - optimum.objective
    cost = perturbation_cost(noise, nuclear_norm(optimum.factors))
    assert -1e-10 <= excess <= cost
    assert cost <= perturbation_cost(noise, problem.empirical_loss(problem.f0) / problem.lam)
    if size >= 0.1:
        assert excess > 1e-6  # it did something, and
        worse = {t: (1.3 * u, 1.3 * v) for t, (u, v) in optimum.factors.items()}
        small = perturbation_cost({t: 1e-4 * Pi for t, Pi in noise.items()}, nuclear_norm(optimum.factors))
        assert problem.objective(worse) - optimum.objective > small  # not every point is within the bound
    assert perturbation_cost({}, 1.0) == 0


def test_a_perturbation_that_is_not_positive_is_refused() -> None:
    problem, noise = posed("squared", 1.0)
    with pytest.raises(InputError, match="expected λI \\+ 2Π to be positive definite"):
        perturbed_gap(problem, problem.zero(), {t: -Pi for t, Pi in noise.items()})
