"""First-order measures on linearised problems, where stationary points and optima are known."""

from __future__ import annotations

import pytest
import torch

from known_problems import known_problem
from random_problems import random_problem
from tangentlora.blocks import Blocks, Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import balance, product_singular_values
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.newton import newton
from tangentlora.theory.first_order import USED, escape_factors, first_order
from tangentlora.theory.fitted_lam import fitted_lam
from tangentlora.theory.stationarity import classify

NAMES = ["cross_entropy, one layer", "cross_entropy, three layers", "logistic, three layers"]


def gradients_of(problem: Problem, factors: Factors) -> Blocks:
    """Return M_t = ∇_{W_t} L̂ at δ, all at once and in float64."""
    return problem.jacobian.adjoint(problem.dual_point(problem.outputs(factors)))


def random_start(problem: Problem, r: int, scale: float = 0.3) -> Factors:
    return {
        t: tuple(scale * torch.randn(size, r, dtype=torch.float64) for size in shape)
        for t, shape in problem.jacobian.shapes.items()
    }


def rested_at(problem: Problem, r: int) -> Factors:
    """Return a stationary point of rank r at most."""
    return newton(problem, random_start(problem, r), tolerance=1e-12).factors


@pytest.mark.parametrize("name", NAMES)
def test_a_certified_optimum_is_at_rest_and_has_no_direction_left(name: str) -> None:
    problem = known_problem(name)
    factors = Certified(tolerance=1e-10).solve(problem).factors
    found = first_order(gradients_of(problem, factors), factors, problem.lam, tolerance=1e-4)
    assert found.force < 1e-4
    assert found.directions == 0
    assert escape_factors(factors, found, 1.0).keys() == factors.keys()
    values = {t: product_singular_values(u, v) for t, (u, v) in factors.items()}
    largest = max(float(s.max()) for s in values.values() if len(s))
    columns = {t: int((s > USED * largest).sum()) for t, s in values.items()}
    for t, layer in found.layers.items():
        assert layer.escape is None
        assert (layer.rank, layer.used) == (factors[t][0].shape[1], columns[t])
        assert layer.imbalance < 1e-4
        assert layer.spectral_ratio == pytest.approx(1.0, abs=1e-4) or layer.used == 0
        assert layer.outside <= problem.lam * (1 + 1e-4)


def test_the_gradient_is_that_of_the_objective_at_balanced_factors() -> None:
    problem = random_problem()
    given = random_start(problem, 2)
    factors = {t: tuple(w.requires_grad_(True) for w in balance(*pair)) for t, pair in given.items()}
    leaves = [w for pair in factors.values() for w in pair]
    z = problem.f0 + problem.jacobian.forward({t: u @ v.T for t, (u, v) in factors.items()})
    F = problem.loss.value(z, problem.y).mean() + problem.lam / 2 * sum(w.square().sum() for w in leaves)
    expected = float(torch.cat([g.flatten() for g in torch.autograd.grad(F, leaves)]).norm())
    found = first_order(gradients_of(problem, given), given, problem.lam)
    slopes = torch.tensor([layer.slope for layer in found.layers.values()])
    assert float(slopes.norm()) == pytest.approx(expected)
    balanced = {t: tuple(w.detach() for w in pair) for t, pair in factors.items()}
    assert found.gradient == pytest.approx(classify(problem, balanced).gradient)
    assert found.gradient <= found.force <= 1


def test_the_gauge_of_the_factors_changes_only_the_imbalance() -> None:
    problem = random_problem()
    factors = random_start(problem, 3)
    R = torch.randn(3, 3, dtype=torch.float64)
    turned = {t: (u @ R, v @ torch.linalg.inv(R).T) for t, (u, v) in factors.items()}
    M = gradients_of(problem, factors)
    here, there = (first_order(M, pair, problem.lam) for pair in (factors, turned))
    assert (here.gradient, here.force) == pytest.approx((there.gradient, there.force))
    for t, layer in here.layers.items():
        u, v = turned[t]
        gap = torch.linalg.matrix_norm(u.T @ u - v.T @ v)
        sizes = torch.linalg.matrix_norm(u.T @ u) + torch.linalg.matrix_norm(v.T @ v)
        assert there.layers[t].imbalance == pytest.approx(float(gap / sizes))
        assert layer.outside == pytest.approx(there.layers[t].outside)
        assert layer.spectrum.values == pytest.approx(there.layers[t].spectrum.values)
    one = {t: balance(*pair) for t, pair in turned.items()}
    assert all(layer.imbalance < 1e-12 for layer in first_order(M, one, problem.lam).layers.values())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_further_directions_are_counted_as_by_dense_decompositions(seed: int) -> None:
    problem = random_problem(seed, lam=0.02, n_examples=12, shapes=((6, 8), (9, 7)))
    factors = rested_at(problem, 1)
    M = gradients_of(problem, factors)
    found = first_order(M, factors, problem.lam, tolerance=1e-6)
    assert found.force < 1e-8
    for t, layer in found.layers.items():
        values = torch.linalg.svdvals(M[t])
        # At rest the column in use is a singular pair of M with value λ, which is not above λ.
        assert layer.directions == int((values > problem.lam * (1 + 1e-6)).sum())
        assert layer.spectral_norm == pytest.approx(float(values[0]))
        assert layer.outside == pytest.approx(float(values[0]))
    assert found.directions >= 2
    assert Certified().solve(problem).ranks != dict.fromkeys(factors, 1)


def test_a_direction_in_use_is_no_further_direction() -> None:
    """Along the update's own singular vectors F falls at the present rank: no more of it is needed."""
    problem = random_problem(lam=0.02)
    name = "layer.0"
    a, b = (torch.nn.functional.normalize(torch.randn(k, 1, dtype=torch.float64), dim=0) for k in (6, 5))
    M = {name: -5.0 * problem.lam * a @ b.T}
    found = first_order(M, {name: (1e-2 * a, 1e-2 * b)}, problem.lam)
    assert found.layers[name].spectral_ratio == pytest.approx(5.0)
    assert found.directions == 0
    assert found.force == pytest.approx(4 / 6)
    assert first_order(M, {name: (0 * a, 0 * b)}, problem.lam).directions == 1


@pytest.mark.parametrize("start", [0, 1])
def test_the_escape_lowers_the_objective_at_the_predicted_rate(start: int) -> None:
    problem = random_problem(3, lam=0.02, n_examples=12, shapes=((6, 8), (9, 7)))
    factors = rested_at(problem, 1) if start else problem.zero()
    found = first_order(gradients_of(problem, factors), factors, problem.lam)
    rates = [layer.escape.rate for layer in found.layers.values() if layer.escape is not None]
    assert len(rates) == 2
    for t, layer in found.layers.items():
        assert layer.escape is not None
        assert layer.escape.rate == pytest.approx(layer.outside - problem.lam)
        a, b, (u, v) = layer.escape.a, layer.escape.b, factors[t]
        assert (float(a.norm()), float(b.norm())) == pytest.approx((1.0, 1.0))
        assert float((u.T @ a).norm() + (v.T @ b).norm()) < 1e-10
    tau, here = 1e-5, problem.factored_objective(factors)
    moved = problem.factored_objective(escape_factors(factors, found, tau))
    predicted = sum(rate**2 for rate in rates) / max(rates)
    assert (here - moved) / tau == pytest.approx(predicted, rel=1e-3)
    assert problem.factored_objective(escape_factors(factors, found, 0.0)) == pytest.approx(here)
    longer = escape_factors({t: (u.float(), v.float()) for t, (u, v) in factors.items()}, found, tau)
    assert all(u.dtype == v.dtype == torch.float32 for u, v in longer.values())
    with pytest.raises(InputError, match=r"got the step τ = -1.0, expected a number of at least 0"):
        escape_factors(factors, found, -1.0)


def test_no_penalty_and_no_update_are_measured_too() -> None:
    problem = random_problem()
    factors = random_start(problem, 2)
    found = first_order(gradients_of(problem, factors), factors, 0.0)
    assert not found.penalised
    assert found.force == pytest.approx(1.0)
    assert 0 < found.gradient < 1
    assert all(layer.spectral_ratio is None for layer in found.layers.values())
    # Every direction outside the two in use counts, and none that rounding made.
    assert {t: layer.directions for t, layer in found.layers.items()} == {"layer.0": 3, "layer.1": 2}
    zero = first_order(gradients_of(problem, problem.zero()), problem.zero(), problem.lam)
    assert (zero.gradient, zero.force) == (0.0, 0.0)
    assert all((layer.rank, layer.used) == (0, 0) for layer in zero.layers.values())


def test_layers_may_have_penalties_of_their_own() -> None:
    problem = random_problem()
    factors = random_start(problem, 2)
    M = gradients_of(problem, factors)
    found = first_order(M, factors, {"layer.0": 0.05, "layer.1": 0.5})
    for t, lam in (("layer.0", 0.05), ("layer.1", 0.5)):
        assert found.layers[t].slope == first_order(M, factors, lam).layers[t].slope
        assert found.layers[t].lam == lam


def test_columns_are_used_by_the_largest_value_of_all_layers() -> None:
    column = torch.ones(4, 1, dtype=torch.float64)
    M = {t: torch.eye(4, dtype=torch.float64) for t in "ab"}
    factors = {"a": (column, column), "b": (1e-2 * column, 1e-2 * column)}
    found = first_order(M, factors, 0.1)
    assert {t: (layer.used, layer.rank) for t, layer in found.layers.items()} == {"a": (1, 1), "b": (0, 1)}


@pytest.mark.parametrize("name", NAMES)
def test_the_penalty_that_was_trained_with_is_found(name: str) -> None:
    problem = known_problem(name)
    factors = Certified(tolerance=1e-10).solve(problem).factors
    found = fitted_lam(gradients_of(problem, factors), factors)
    assert found.lam == pytest.approx(problem.lam, rel=1e-4)
    assert found.explained == pytest.approx(1.0, abs=1e-6)


def test_the_fitted_penalty_is_the_one_of_least_residual() -> None:
    problem = random_problem()
    factors = random_start(problem, 2)
    M = gradients_of(problem, factors)
    if float(sum((M[t] * (u @ v.T)).sum() for t, (u, v) in factors.items())) > 0:
        factors = {t: (-u, v) for t, (u, v) in factors.items()}

    def residual(lam: float) -> float:
        slopes = (layer.slope for layer in first_order(M, factors, lam).layers.values())
        return sum(slope**2 for slope in slopes)

    found = fitted_lam(M, factors)
    assert found.lam is not None
    assert found.explained == pytest.approx(1 - residual(found.lam) / residual(0.0))
    assert 0 < found.explained < 0.9
    for factor in (0.99, 1.01):
        assert residual(factor * found.lam) > residual(found.lam)


def test_an_update_that_raises_the_loss_fits_no_penalty() -> None:
    problem = random_problem()
    factors = Certified().solve(problem).factors
    M = {t: -block for t, block in gradients_of(problem, factors).items()}
    for pairs in (factors, problem.zero()):
        found = fitted_lam(M, pairs)
        assert (found.lam, found.explained) == (None, 0.0)


def test_bad_input_is_refused() -> None:
    problem = random_problem()
    factors = random_start(problem, 2)
    M = gradients_of(problem, factors)
    with pytest.raises(InputError, match=r"do not match at layer\.1, expected both for every layer"):
        first_order(M, {"layer.0": factors["layer.0"]}, 0.1)
    with pytest.raises(
        InputError, match=r"shapes \(5, 2\) and \(6, 2\) for 'layer\.0', .* \(m, n\) = \(6, 5\)"
    ):
        first_order(M, factors | {"layer.0": factors["layer.0"][::-1]}, 0.1)
    with pytest.raises(InputError, match=r"gradient or factors of 'layer\.0' that are not finite"):
        first_order(M | {"layer.0": torch.inf * M["layer.0"]}, factors, 0.1)
    with pytest.raises(InputError, match=r"got λ = -0.1 for 'layer\.0', expected a number of at least 0"):
        first_order(M, factors, -0.1)
    with pytest.raises(InputError, match=r"got λ = nan for 'layer\.1'"):
        first_order(M, factors, {"layer.0": 0.1})
