from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cvxpy
import pytest
import torch

from known_problems import KNOWN, known_optimum, known_problem, largest_lam, rescaled, solve_by_cvxpy
from random_problems import random_problem
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import product_singular_values
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.solution import Record, Solution, Status
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows

LOSSES = {"cross_entropy": 3, "logistic": 1, "squared": 2}


def posed(
    loss: str,
    share: float,
    *,
    seed: int = 0,
    n_examples: int = 8,
    n_outputs: int | None = None,
    shapes: Sequence[tuple[int, int]] = ((6, 5), (4, 7)),
    scales: Sequence[float] = (1.0,),
    f0_scale: float = 1.0,
) -> Problem:
    """Return a random problem with λ at a share of the value from which δ = 0 is optimal."""
    k = n_outputs or LOSSES[loss]
    problem = random_problem(seed, loss, n_examples=n_examples, n_outputs=k, shapes=shapes)
    problem = rescaled(problem, scales, f0_scale)
    return replace(problem, lam=share * largest_lam(problem))


def assert_optimal(solution: Solution, tolerance: float = 1e-6) -> None:
    """Check every claim of a certified solution on the problem as given, without its own numbers."""
    problem = solution.problem
    assert solution.status is Status.GLOBAL_OPTIMUM
    assert problem.gap(solution.factors) <= tolerance * max(1.0, solution.objective)
    assert solution.objective == pytest.approx(problem.factored_objective(solution.factors), rel=1e-9)
    last = solution.history[-1]
    assert last.epoch == solution.epochs
    assert last.objective == pytest.approx(solution.objective, rel=1e-9)
    for name, (u, v) in solution.factors.items():
        torch.testing.assert_close(u.T @ u, v.T @ v, rtol=1e-6, atol=1e-9 * float(1 + v.square().sum()))
        assert u.shape[1] == solution.ranks[name] == len(product_singular_values(u, v))


@pytest.mark.parametrize("name", KNOWN)
def test_it_finds_the_optimum_that_an_interior_point_method_finds(name: str) -> None:
    problem = known_problem(name)
    solution = Certified().solve(problem)
    assert_optimal(solution)
    assert abs(solution.objective - known_optimum(name)) <= 1e-6
    # generically the optimum is unique, and Theorem 1 bounds its rank
    assert sum(r * (r + 1) / 2 for r in solution.ranks.values()) <= problem.constraints
    assert sum(solution.ranks.values()) > 0


@pytest.mark.parametrize(
    "name", ["cross_entropy, two classes", "logistic, three layers", "squared, five outputs"]
)
def test_it_finds_the_optimum_that_operator_splitting_finds(name: str) -> None:
    problem = known_problem(name)
    optimum = solve_by_cvxpy(problem, solver=cvxpy.SCS, eps_abs=1e-9, eps_rel=1e-9, max_iters=100_000)
    assert abs(Certified().solve(problem).objective - optimum) <= 1e-6


@pytest.mark.parametrize("tolerance", [1e-3, 1e-9])
def test_the_tolerance_is_met(tolerance: float) -> None:
    solution = Certified(tolerance).solve(known_problem("cross_entropy, five classes"))
    assert_optimal(solution, tolerance)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_large_penalty_is_answered_by_zero_at_once(loss: str) -> None:
    solution = Certified().solve(posed(loss, 1.0 + 1e-9))
    assert_optimal(solution)
    assert solution.epochs == 0
    assert len(solution.history) == 1
    assert set(solution.ranks.values()) == {0}
    assert sum(Certified().solve(posed(loss, 0.99)).ranks.values()) == 1


def test_no_penalty_is_refused() -> None:
    problem = replace(known_problem("squared, one output"), lam=0.0)
    for call in (Certified().solve, Certified().check):
        with pytest.raises(InputError, match="got λ = 0 for the certified solver, expected λ > 0"):
            call(problem)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("share", [1e-2, 1e-4, 1e-6])
def test_little_penalty(loss: str, share: float) -> None:
    assert_optimal(Certified().solve(posed(loss, share)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("share", [0.3, 1e-3, 1e-6])
def test_examples_of_very_different_scales(loss: str, share: float) -> None:
    problem = posed(loss, share, n_examples=24, shapes=((12, 12), (9, 15)), scales=(1e4, 1e-4, 1.0, 1.0))
    assert_optimal(Certified().solve(problem))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_all_examples_does_not_matter(loss: str, scale: float) -> None:
    solution = Certified().solve(posed(loss, 0.02, scales=(scale,)))
    assert_optimal(solution)
    assert solution.objective == pytest.approx(Certified().solve(posed(loss, 0.02)).objective, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("f0_scale", [1e2, 1e4])
def test_outputs_that_start_far_from_the_labels(loss: str, f0_scale: float) -> None:
    assert_optimal(Certified().solve(posed(loss, 0.03, f0_scale=f0_scale)))


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("cross_entropy", {"n_examples": 1}),
        ("logistic", {"n_examples": 1}),
        ("squared", {"n_examples": 1, "n_outputs": 4}),
        ("cross_entropy", {"n_outputs": 20, "n_examples": 25, "shapes": ((12, 10),)}),
        ("cross_entropy", {"shapes": ((2, 40), (40, 2), (1, 1), (1, 9))}),
        ("squared", {"shapes": ((50, 1), (3, 60))}),
    ],
)
def test_extreme_shapes(loss: str, settings: dict[str, int]) -> None:
    for share in (0.3, 0.003):
        assert_optimal(Certified().solve(posed(loss, share, **settings)))  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", LOSSES)
def test_repeated_examples_with_equal_and_with_opposite_labels(loss: str) -> None:
    once = posed(loss, 0.01)
    index = [i // 2 for i in range(16)]
    twice = Problem(once.jacobian.select(index), once.f0[index], once.y[index], once.loss, once.lam)
    solution = Certified().solve(twice)
    assert_optimal(solution)
    assert solution.objective == pytest.approx(Certified().solve(once).objective, abs=1e-6)
    opposite = replace(twice, y=twice.y.roll(1, 0))
    assert_optimal(Certified().solve(opposite))
    assert opposite.constraints == once.constraints


@pytest.mark.parametrize("loss", LOSSES)
def test_a_layer_without_influence_stays_at_rank_zero(loss: str) -> None:
    problem = posed(loss, 0.05)
    layers = dict(problem.jacobian.layers)
    layers["layer.0"] = replace(layers["layer.0"], g=0 * layers["layer.0"].g)
    solution = Certified().solve(replace(problem, jacobian=Jacobian(layers)))
    assert_optimal(solution)
    assert solution.ranks["layer.0"] == 0
    assert solution.ranks["layer.1"] > 0
    none = torch.arange(0)
    layers["layer.0"] = LayerRows(
        layers["layer.0"].x[none], layers["layer.0"].g[none], 0 * layers["layer.0"].counts
    )
    without_rows = Certified().solve(replace(problem, jacobian=Jacobian(layers)))
    assert_optimal(without_rows)
    assert without_rows.objective == pytest.approx(solution.objective, abs=1e-6)
    nothing = Certified().solve(replace(problem, jacobian=rescaled(problem, [0.0]).jacobian))
    assert_optimal(nothing)
    assert nothing.epochs == 0


def test_separable_data_have_an_answer_however_small_the_penalty() -> None:
    x = torch.tensor([[1.0, 0.2], [2.0, -0.3], [-1.0, 0.1], [-3.0, 0.4]], dtype=torch.float64)
    rows = LayerRows(x, torch.ones(4, 1, 1, dtype=torch.float64), torch.ones(4, dtype=torch.long))
    y = torch.tensor([1, 1, -1, -1])
    problem = random_problem(loss="logistic", n_examples=4)
    sizes = []
    for lam in (1e-1, 1e-4, 1e-8):
        separable = Problem(Jacobian({"only": rows}), 0 * problem.f0, y, problem.loss, lam)
        solution = Certified(1e-9).solve(separable)
        assert_optimal(solution, 1e-9)
        sizes.append(float(solution.factors["only"][0].square().sum()))
    assert sizes == sorted(sizes)


def test_a_larger_problem() -> None:
    problem = posed("cross_entropy", 0.3, n_examples=96, n_outputs=6, shapes=((32, 32),) * 24)
    solution = Certified().solve(problem)
    assert_optimal(solution)
    assert sum(r * (r + 1) / 2 for r in solution.ranks.values()) <= problem.constraints == 480


@pytest.mark.parametrize(
    ("loss", "share", "rank"),
    [("logistic", 0.1571, 4), ("logistic", 0.4426, 3), ("cross_entropy", 0.2067, 5)],
)
def test_a_pair_that_is_all_but_wanted_costs_few_products(loss: str, share: float, rank: int) -> None:
    # where σ_{r+1}(M) is nearly λ, F is nearly quartic along a column that an escape appends for it
    problem = posed(loss, share, n_examples=60, shapes=((40, 40),))
    solution = Certified().solve(problem)
    assert_optimal(solution)
    assert solution.ranks == {"layer.0": rank}
    M = problem.jacobian.adjoint(problem.dual_point(problem.outputs(solution.factors)))["layer.0"]
    assert 0.99 < float(torch.linalg.svdvals(M)[rank]) / problem.lam < 1
    assert solution.epochs <= 60  # Newton's method without cores took some two hundred


def test_a_start_far_wider_than_the_optimum_arrives_there() -> None:
    problem = posed("cross_entropy", 0.1, n_examples=20, shapes=((20, 20), (15, 25)))
    generator = torch.Generator().manual_seed(0)
    wide = {
        name: tuple(torch.randn(d, 12, generator=generator, dtype=torch.float64) for d in shape)
        for name, shape in problem.jacobian.shapes.items()
    }
    solution = Certified().solve(problem, start=wide)  # type: ignore[arg-type]
    assert_optimal(solution)
    assert solution.ranks == Certified().solve(problem).ranks


def test_the_same_settings_give_the_same_bytes() -> None:
    problem = posed("cross_entropy", 0.05)
    first, second = (Certified().solve(replace(problem)) for _ in range(2))
    assert first.history == second.history
    for name, pair in first.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, second.factors[name], strict=True))


def test_the_monitor_sees_the_factors_of_the_problem_as_given_each_round() -> None:
    problem = posed("squared", 0.05, shapes=((60, 3), (4, 70)))
    seen: list[float] = []

    def monitor(record: Record, factors: Factors) -> dict[str, float]:
        assert record.objective == pytest.approx(problem.factored_objective(factors), rel=1e-9)
        seen.append(problem.objective(factors))
        return {"accuracy": float(len(seen))}

    solution = Certified().solve(problem, monitor)
    assert [record.measures["accuracy"] for record in solution.history] == [1.0 + i for i in range(len(seen))]
    assert seen == pytest.approx([record.objective for record in solution.history], rel=1e-6)


@pytest.mark.parametrize(
    ("solver", "rounds", "status"),
    [
        (Certified(tolerance=1e-30), None, Status.PRECISION_REACHED),
        (Certified(tolerance=1e-30, max_rounds=1), 2, Status.ROUNDS_SPENT),
    ],
)
def test_an_end_before_the_tolerance_is_said(solver: Certified, rounds: int | None, status: Status) -> None:
    solution = solver.solve(known_problem("squared, three layers"))
    assert solution.status is status
    assert rounds is None or len(solution.history) == rounds
    assert len(solution.history) < 10
    assert solution.history[-1].gap > 1e-30
    assert abs(solution.objective - known_optimum("squared, three layers")) <= 0.1
