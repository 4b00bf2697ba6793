from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from random_problems import LOSSES, random_problem
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import shrink
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.proximal import Proximal
from tangentlora.solvers.solution import Record, Solver, Status
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.theory.certificate import certify


@pytest.mark.parametrize("lam", [0.2, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_it_ends_at_the_certified_optimum(loss: str, lam: float) -> None:
    problem = random_problem(1, loss, lam)
    optimum = certify(problem, Certified().solve(problem))
    assert optimum.certified
    solution = Proximal().solve(problem)
    assert solution.status is Status.GLOBAL_OPTIMUM
    assert -1e-10 <= solution.objective - optimum.objective <= 1e-6
    assert certify(problem, solution, 1.1e-6).certified
    for u, v in solution.factors.values():
        torch.testing.assert_close(u.T @ u, v.T @ v, rtol=0, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_ends_at_the_optimum_of_a_conic_solver(loss: str) -> None:
    cvxpy = pytest.importorskip("cvxpy")
    problem = random_problem(1, loss, 0.2, n_examples=5, shapes=((4, 3), (3, 5)))
    deltas = {name: cvxpy.Variable(shape) for name, shape in problem.jacobian.shapes.items()}
    blocks = problem.jacobian.dense()
    n, k = problem.f0.shape
    z = [
        [
            problem.f0[i, j].item()
            + sum(cvxpy.sum(cvxpy.multiply(blocks[t][i, j].numpy(), deltas[t])) for t in deltas)
            for j in range(k)
        ]
        for i in range(n)
    ]
    y = problem.y
    values = {
        "cross_entropy": lambda i: cvxpy.log_sum_exp(cvxpy.hstack(z[i])) - z[i][int(y[i])],
        "logistic": lambda i: cvxpy.logistic(-float(y[i]) * z[i][0]),
        "squared": lambda i: 0.5 * cvxpy.sum_squares(cvxpy.hstack(z[i]) - y[i].numpy()),
    }[loss]
    penalty = sum(cvxpy.normNuc(delta) for delta in deltas.values())
    objective = sum(values(i) for i in range(n)) / n + problem.lam * penalty
    expected = cvxpy.Problem(cvxpy.Minimize(objective)).solve(solver=cvxpy.CLARABEL)
    solution = Proximal(tolerance=5e-7).solve(problem)
    assert solution.objective == pytest.approx(expected, abs=1e-6)


def test_the_first_step_is_the_dense_proximal_step() -> None:
    problem = random_problem(3, "squared", 0.3)
    seen: list[Factors] = []

    def monitor(_: Record, factors: Factors) -> dict[str, float]:
        seen.append(factors)
        return {}

    Proximal(epochs=1).solve(problem, monitor)
    gradient = problem.jacobian.adjoint(problem.dual_point(problem.f0))
    # one of the steps 1/L that backtracking tries must give what the solver took
    largest = float(torch.linalg.eigvalsh(problem.jacobian.gram())[-1]) / len(problem.f0)
    tried = [min(0.9 * largest / 16 * 1.5**k, largest) for k in range(20)]
    dense = [{name: shrink(-G / L, problem.lam / L) for name, G in gradient.items()} for L in tried]
    assert any(
        all(torch.allclose(u @ v.T, seen[1][name][0] @ seen[1][name][1].T) for name, (u, v) in step.items())
        for step in dense
    )


def test_the_history_bounds_the_optimum_from_both_sides() -> None:
    problem = random_problem(0, lam=0.02)
    optimum = Certified().solve(problem).objective
    solution = Proximal(epochs=50).solve(problem, lambda _, factors: {"P": problem.objective(factors)})
    assert solution.history[0].epoch == 0
    assert solution.history[-1].epoch == solution.epochs
    for record in solution.history:
        assert record.objective - record.gap <= optimum + 1e-12 <= record.objective + 2e-12
        assert record.measures["P"] == pytest.approx(record.objective, rel=1e-9)


def test_the_trace_is_the_objective_of_every_iteration() -> None:
    solution = Proximal(epochs=12, tolerance=1e-12).solve(random_problem(1, lam=0.02))
    assert [epoch for epoch, _ in solution.trace] == list(range(13))
    objectives = dict(solution.trace)
    assert all(record.objective == objectives[record.epoch] for record in solution.history)


def test_the_epochs_are_kept_to_and_reported() -> None:
    solution = Proximal(epochs=2, tolerance=1e-12).solve(random_problem())
    assert (solution.status, solution.epochs) == (Status.EPOCHS_SPENT, 2)


def test_where_zero_is_the_optimum_it_stays_there() -> None:
    problem = random_problem(lam=10.0)
    solution = Proximal().solve(problem)
    assert (solution.status, solution.epochs) == (Status.GLOBAL_OPTIMUM, 0)
    assert set(solution.ranks.values()) == {0}


@pytest.mark.parametrize("loss", LOSSES)
def test_without_a_penalty_it_fits_the_data(loss: str) -> None:
    problem = random_problem(2, loss, lam=0.0)
    solution = Proximal(epochs=80).solve(problem)
    assert solution.objective < 1e-2 * problem.objective(problem.zero())


@pytest.mark.parametrize("solver", [Proximal(), Descent(rank=3)], ids=["proximal", "descent"])
@pytest.mark.parametrize("without", ["rows", "values"])
def test_a_layer_that_no_output_depends_on_stays_at_zero(solver: Solver, without: str) -> None:
    problem = random_problem(1, lam=0.2)
    layers = dict(problem.jacobian.layers)
    rows = layers["layer.0"]
    layers["layer.0"] = {
        "rows": LayerRows(rows.x[:0], rows.g[:0], 0 * rows.counts),
        "values": LayerRows(rows.x, 0 * rows.g, rows.counts),
    }[without]
    silent = Problem(Jacobian(layers), problem.f0, problem.y, problem.loss, problem.lam)
    solution = solver.solve(silent)
    assert solution.status is Status.GLOBAL_OPTIMUM
    u, v = solution.factors["layer.0"]
    assert float((u @ v.T).abs().sum()) < 1e-6


def test_the_same_seed_gives_the_same_bytes() -> None:
    problem = random_problem(1)
    first, second = (Proximal(epochs=20, seed=2).solve(problem) for _ in range(2))
    assert first.history == second.history
    for name, pair in first.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, second.factors[name], strict=True))


@pytest.mark.parametrize("epochs", [0, -1])
def test_less_than_an_epoch_is_refused(epochs: Any) -> None:
    with pytest.raises(InputError, match=rf"got {epochs} epochs, expected at least one: change --epochs"):
        Proximal(epochs=epochs).solve(random_problem())


def test_progress_is_shown_on_stderr_and_only_if_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    Proximal(epochs=2).solve(random_problem())
    assert capsys.readouterr() == ("", "")
    Proximal(epochs=2).solve(random_problem(), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "full" in err
    assert "2/2" in err


def test_on_the_device_of_the_problem(device: torch.device) -> None:
    solution = Proximal().solve(random_problem(device=device))
    assert solution.status is Status.GLOBAL_OPTIMUM
    assert all(w.device.type == device.type for pair in solution.factors.values() for w in pair)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_plain_steps_at_a_rate_below_two_over_l_lower_the_objective_at_every_step(share: float) -> None:
    problem = random_problem(2, lam=0.02)
    inner = problem.reduced[0]
    smooth = inner.loss.smoothness * float(inner.kernel_eigenvalues[-1]) / len(inner.f0)
    rate = share * 2 / smooth
    solution = Proximal(epochs=60, learning_rate=rate, momentum=0.0, tolerance=1e-12).solve(problem)
    values = [value for _, value in solution.trace]
    assert all(after <= before + 1e-12 for before, after in pairwise(values))
    assert solution.rates == ((0, rate),)
    assert solution.learning_rate == rate


def test_one_plain_step_is_the_proximal_gradient_step_at_the_given_rate() -> None:
    problem, rate = random_problem(2, lam=0.02), 0.3
    solution = Proximal(epochs=1, learning_rate=rate, momentum=0.0, tolerance=1e-12).solve(problem)
    gradient = problem.jacobian.adjoint(problem.dual_point(problem.f0))
    for name, (u, v) in solution.factors.items():
        left, sigma, right = torch.linalg.svd(-rate * gradient[name], full_matrices=False)
        expected = left @ torch.diag((sigma - rate * problem.lam).clamp(min=0)) @ right
        assert float((u @ v.T - expected).abs().max()) < 1e-9 * (1 + float(expected.abs().max()))


def test_acceleration_is_what_makes_full_fine_tuning_need_few_epochs() -> None:
    problem = random_problem(2, lam=0.005)
    accelerated = Proximal(epochs=200, tolerance=1e-12).solve(problem)
    plain = Proximal(epochs=200, momentum=0.0, tolerance=1e-12).solve(problem)
    assert plain.history[-1].gap > accelerated.history[-1].gap
    assert plain.status is not Status.ABOVE_START
    assert plain.learning_rate is not None


@pytest.mark.parametrize("rate", [1e3, 1e200])
def test_a_rate_that_is_too_large_is_said(rate: float) -> None:
    problem = random_problem(2, lam=0.0005)
    solution = Proximal(epochs=30, learning_rate=rate, momentum=0.0).solve(problem)
    assert solution.status in (Status.DIVERGED, Status.ABOVE_START)
    assert all(bool(w.isfinite().all()) for pair in solution.factors.values() for w in pair)


def test_a_rate_or_momentum_out_of_range_is_refused() -> None:
    problem = random_problem(2)
    for solver, message in [
        (Proximal(learning_rate=0.0), "got learning rate 0.0"),
        (Proximal(momentum=1.0), "got momentum 1.0"),
    ]:
        with pytest.raises(InputError, match=message):
            solver.solve(problem)
