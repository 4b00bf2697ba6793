from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from known_problems import KNOWN, known_problem, rescaled
from random_jacobians import random_factors
from tangentlora.blocks import Factors, multiply
from tangentlora.errors import InputError
from tangentlora.problem.losses import CrossEntropy, Squared
from tangentlora.problem.objective import Problem, half_squares, nuclear_norm
from tangentlora.problem.spectral import balance
from tangentlora.tangent.jacobian import Jacobian


def plain(problem: Problem, factors: Factors) -> tuple[np.ndarray, float]:
    """Return outputs and P from the dense Jacobian, in numpy."""
    z, penalty = problem.f0.numpy().copy(), 0.0
    for name, delta in multiply(factors).items():
        z += np.einsum("ikmn,mn->ik", problem.jacobian.dense()[name].numpy(), delta.numpy())
        penalty += np.linalg.norm(delta.numpy(), "nuc")
    y = problem.y.numpy()
    if problem.loss.name == "cross_entropy":
        losses = np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), y]
    elif problem.loss.name == "logistic":
        losses = np.log1p(np.exp(-y * z[:, 0]))
    else:
        losses = 0.5 * ((z - y) ** 2).sum(1)
    return z, losses.mean() + problem.lam * penalty


@pytest.mark.parametrize("name", KNOWN)
def test_objectives_are_their_definitions(name: str) -> None:
    problem = known_problem(name)
    factors = random_factors(problem.jacobian)
    z, objective = plain(problem, factors)
    torch.testing.assert_close(problem.outputs(factors), torch.from_numpy(z))
    assert problem.objective(factors) == pytest.approx(objective, rel=1e-12)
    dense = multiply(factors).values()
    assert nuclear_norm(factors) == pytest.approx(sum(np.linalg.norm(d, "nuc") for d in dense), rel=1e-12)
    excess = problem.lam * (half_squares(factors) - nuclear_norm(factors))
    assert problem.factored_objective(factors) == pytest.approx(objective + excess, rel=1e-12)
    balanced = {layer: balance(u, v) for layer, (u, v) in factors.items()}
    assert problem.factored_objective(balanced) == pytest.approx(objective, rel=1e-12)
    assert problem.objective(problem.zero()) == pytest.approx(
        float(problem.loss.value(problem.f0, problem.y).mean())
    )


@pytest.mark.parametrize("name", KNOWN)
def test_the_dual_point_is_the_gradient_of_the_empirical_loss(name: str) -> None:
    problem = known_problem(name)
    z = problem.outputs(random_factors(problem.jacobian)).requires_grad_()
    (gradient,) = torch.autograd.grad(problem.loss.value(z, problem.y).mean(), z)
    torch.testing.assert_close(problem.dual_point(z.detach()), gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KNOWN)
def test_contrasts_and_the_span_change_nothing(name: str) -> None:
    problem = known_problem(name)
    reduced, span = problem.reduced
    factors = random_factors(reduced.jacobian)
    lifted = span.lift(factors)
    for form in (problem, problem.contrasted):
        assert form.objective(lifted) == pytest.approx(reduced.objective(factors), rel=1e-12)
        assert form.factored_objective(lifted) == pytest.approx(
            reduced.factored_objective(factors), rel=1e-12
        )
        assert form.gap(lifted) == pytest.approx(reduced.gap(factors), rel=1e-10)
    assert problem.contrasted.contrasted is problem.contrasted
    assert problem.contrasted.constraints == problem.constraints


@pytest.mark.parametrize("name", KNOWN)
def test_the_dual_value_is_below_every_objective(name: str) -> None:
    problem = known_problem(name)
    points = [random_factors(problem.jacobian, (r, r, r)) for r in (1, 2, 3)] + [problem.zero()]
    bounds = [problem.dual_value(problem.dual_point(problem.outputs(x))) for x in points]
    assert max(bounds) <= min(problem.objective(x) for x in points) + 1e-12
    for x in points:
        assert problem.gap(x) >= -1e-12


def test_at_lam_zero_the_gap_is_that_to_a_perfect_fit() -> None:
    problem = replace(known_problem("cross_entropy, one layer"), lam=0.0)
    factors = random_factors(problem.jacobian)
    assert problem.gap(factors) == pytest.approx(problem.objective(factors), rel=1e-12)


@pytest.mark.parametrize("name", KNOWN)
def test_constraints_are_the_rank_of_the_dense_jacobian(name: str) -> None:
    problem = known_problem(name)
    jacobian = problem.contrasted.jacobian
    rows = jacobian.n_examples * jacobian.n_outputs
    dense = torch.cat([b.reshape(rows, -1) for b in jacobian.dense().values()], 1).numpy()
    assert problem.constraints == np.linalg.matrix_rank(dense)
    values = np.linalg.svd(dense, compute_uv=False) ** 2
    found = problem.kernel_eigenvalues.flip(0)[: len(values)].numpy()
    np.testing.assert_allclose(found, values[: len(found)], rtol=1e-8, atol=1e-12 * values[0])


def test_repeated_examples_add_no_constraints() -> None:
    problem = known_problem("cross_entropy, five classes")
    twice = [0, 1, 2, 3, 4, 5, 0, 1, 2]
    again = Problem(
        problem.jacobian.select(twice), problem.f0[twice], problem.y[twice], problem.loss, problem.lam
    )
    assert again.constraints == problem.constraints == 24
    blocks = again.contrasted.jacobian.dense().values()
    assert np.linalg.matrix_rank(torch.cat([b.reshape(36, -1) for b in blocks], 1).numpy()) == 24
    nothing = rescaled(problem, [0.0])
    assert nothing.constraints == 0


def test_everything_becomes_double_precision() -> None:
    known = known_problem("squared, one output")
    single = Problem(
        known.jacobian.to(torch.float32), known.f0.float(), known.y.float(), known.loss, known.lam
    )
    assert single.jacobian.dtype == single.f0.dtype == single.y.dtype == torch.float64
    classes = known_problem("cross_entropy, one layer")
    short = replace(classes, y=classes.y.to(torch.uint8))
    assert short.y.dtype == torch.int64
    assert short.objective(short.zero()) == classes.objective(classes.zero())


@pytest.mark.parametrize("name", ["cross_entropy, two classes", "squared, three layers"])
def test_another_lam_changes_the_penalty_and_computes_nothing_else_again(name: str) -> None:
    problem = known_problem(name)
    other = problem.with_lam(0.3)
    fresh = replace(problem, lam=0.3)
    factors = random_factors(problem.jacobian)
    assert other.lam == 0.3
    assert other.objective(factors) == fresh.objective(factors)
    assert other.gap(factors) == fresh.gap(factors)
    third = other.with_lam(0.7)
    inner, span = third.reduced
    for form in (problem, other, third):
        assert form.reduced[1] is span
        assert form.reduced[0].lam == form.contrasted.lam == form.lam
        assert form.kernel_eigenvalues is problem.kernel_eigenvalues
        assert form.contrasted.contrasted is form.contrasted
        for layer, rows in form.reduced[0].jacobian.layers.items():
            assert rows.g.data_ptr() == inner.jacobian.layers[layer].g.data_ptr()
    assert other.reduced[0].kernel_eigenvalues is inner.kernel_eigenvalues
    inside = random_factors(inner.jacobian)
    assert third.reduced[0].gap(inside) == replace(problem, lam=0.7).reduced[0].gap(inside)
    torch.testing.assert_close(replace(other, f0=2 * other.f0).contrasted.f0, 2 * problem.contrasted.f0)
    with pytest.raises(InputError, match="got λ = -1, expected a number of at least 0"):
        problem.with_lam(-1)


def test_bad_input_is_refused() -> None:
    problem = known_problem("cross_entropy, one layer")
    for lam in (-1e-9, math.nan, math.inf):
        with pytest.raises(InputError, match=f"got λ = {lam}, expected a number of at least 0"):
            replace(problem, lam=lam)
    with pytest.raises(
        InputError, match=r"got outputs of shape \(6, 3\) for a Jacobian of 7 examples and 3 outputs"
    ):
        replace(problem, f0=problem.f0[:6], y=problem.y[:6])
    with pytest.raises(InputError, match="got the label 7 for 3 outputs"):
        replace(problem, y=problem.y + 7)
    with pytest.raises(InputError, match=r"got labels of shape \(7,\), expected \(7, 3\)"):
        replace(problem, loss=Squared())
    spoiled = problem.f0.clone()
    spoiled[2, 1] = math.nan
    with pytest.raises(InputError, match="outputs or gradients that are not finite"):
        replace(problem, f0=spoiled)
    with pytest.raises(InputError, match="outputs or gradients that are not finite"):
        rescaled(problem, [1.0, math.inf])
    nobody = Jacobian({name: rows.select(torch.arange(0)) for name, rows in problem.jacobian.layers.items()})
    with pytest.raises(InputError, match="got no examples"):
        Problem(nobody, problem.f0[:0], problem.y[:0], CrossEntropy(), 0.1)
