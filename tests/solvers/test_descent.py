from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from random_problems import LOSSES, random_problem
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.factored import FactoredObjective, perturbation
from tangentlora.solvers.solution import Record, Solution, Status
from tangentlora.solvers.spectral_start import spectral_start
from tangentlora.theory.certificate import certify


def recorded(problem: Problem, solver: Descent) -> tuple[Solution, list[Factors]]:
    """Run the solver and keep the factors of every logged epoch."""
    seen: list[Factors] = []

    def monitor(record: Record, factors: Factors) -> dict[str, float]:
        assert record.measures == {}
        seen.append({name: (u.clone(), v.clone()) for name, (u, v) in factors.items()})
        return {"epochs_seen": float(len(seen))}

    return solver.solve(problem, monitor), seen


def handwritten(problem: Problem, start: Factors, solver: Descent, epochs: int) -> list[Factors]:
    """Gradient descent by autograd through dense Jacobians: the factors at the start and after each epoch."""
    blocks = problem.jacobian.dense()
    noise = perturbation(problem.jacobian.shapes, solver.perturbation, solver.seed, problem.f0)
    factors = {name: [w.clone() for w in pair] for name, pair in start.items()}
    velocity = {name: [torch.zeros_like(w) for w in pair] for name, pair in start.items()}
    trace = [start]
    for _ in range(epochs):
        for index in torch.arange(len(problem.f0)).split(solver.batch_size or len(problem.f0)):
            leaves = {name: [w.clone().requires_grad_() for w in pair] for name, pair in factors.items()}
            z, penalty = problem.f0[index], torch.zeros((), dtype=torch.float64)
            for name, (u, v) in leaves.items():
                z = z + (blocks[name][index] * (u @ v.T)).sum((2, 3))
                penalty = penalty + problem.lam / 2 * (u.square().sum() + v.square().sum())
                if name in noise:
                    q = torch.cat([u, v])
                    penalty = penalty + (noise[name] * (q @ q.T)).sum()
            (problem.loss.value(z, problem.y[index]).mean() + penalty).backward()
            for name, pair in leaves.items():
                for part, leaf in enumerate(pair[:1] if solver.freeze_a else pair):
                    velocity[name][part] = solver.momentum * velocity[name][part] + leaf.grad
                    factors[name][part] = factors[name][part] - solver.learning_rate * velocity[name][part]
        trace.append({name: (u.clone(), v.clone()) for name, (u, v) in factors.items()})
    return trace


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.0},
        {"batch_size": 3},
        {"freeze_a": True},
        {"perturbation": 0.05},
        {"batch_size": 2, "perturbation": 0.02, "momentum": 0.5, "freeze_a": True},
    ],
    ids=str,
)
def test_the_trajectory_is_that_of_a_plain_loop_on_dense_jacobians(
    loss: str, settings: dict[str, Any]
) -> None:
    problem = random_problem(4, loss)
    solver = Descent(rank=2, epochs=8, learning_rate=0.03, seed=3, tolerance=1e-12, **settings)
    solution, seen = recorded(problem, solver)
    expected = handwritten(problem, seen[0], solver, 8)
    noise = perturbation(problem.jacobian.shapes, solver.perturbation, solver.seed, problem.f0)
    assert {0, 1, 2, 8} <= {record.epoch for record in solution.history}
    for count, (record, found) in enumerate(zip(solution.history, seen, strict=True), start=1):
        wanted = expected[record.epoch]
        for name in wanted:
            for ours, theirs in zip(found[name], wanted[name], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        perturbed = FactoredObjective(problem, noise).evaluate(wanted).value
        assert record.objective == pytest.approx(perturbed, rel=1e-10)
        assert record.gap == pytest.approx(problem.gap(wanted), rel=1e-8)
        assert record.measures == {"epochs_seen": count}


def test_a_given_rate_is_kept_while_the_objective_rises() -> None:
    problem = random_problem(0, "squared")
    solver = Descent(rank=2, epochs=40, learning_rate=0.4, momentum=0.0, seed=1)
    solution, seen = recorded(problem, solver)
    objectives = [record.objective for record in solution.history]
    assert any(later > 1.2 * sooner for sooner, later in pairwise(objectives))
    assert solution.status is Status.EPOCHS_SPENT
    expected = handwritten(problem, seen[0], solver, 40)
    for record, found in zip(solution.history, seen, strict=True):
        for name, (u, v) in expected[record.epoch].items():
            torch.testing.assert_close(found[name][0], u, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(found[name][1], v, rtol=1e-6, atol=1e-9)


def test_the_start_is_the_papers() -> None:
    problem = random_problem(shapes=((40, 60), (30, 50)), n_examples=2)
    _, seen = recorded(problem, Descent(rank=25, epochs=1, learning_rate=1e-3))
    drawn = []
    for name, (m, n) in problem.jacobian.shapes.items():
        u, v = seen[0][name]
        assert u.shape == (m, 25)
        assert v.shape == (n, 25)
        assert not u.any()
        drawn.append(v.flatten() * math.sqrt(25) * n)
    values = torch.cat(drawn)  # 2,750 standard normals, in theory
    assert abs(float(values.mean())) < 4 / math.sqrt(len(values))
    assert abs(float(values.std()) - 1) < 4 / math.sqrt(2 * len(values))
    assert abs(float((values**4).mean()) - 3) < 4 * math.sqrt(96 / len(values))
    assert not torch.equal(drawn[0][:100], drawn[1][:100])


METHODS = [
    {"method": "sgd", "epochs": 1000},
    {"method": "lbfgs", "epochs": 1000},
    {"method": "adamw", "epochs": 1000, "learning_rate": 2e-2},
]


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: s["method"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_method_reaches_the_certified_optimum_at_sufficient_rank(
    loss: str, settings: dict[str, Any]
) -> None:
    problem = random_problem(1, loss, lam=0.3)
    optimum = certify(problem, Certified().solve(problem))
    assert optimum.certified
    solution = Descent(rank=4, **settings).solve(problem)
    assert -1e-9 <= solution.objective - optimum.objective <= 1e-5
    assert solution.status is Status.GLOBAL_OPTIMUM
    assert certify(problem, solution, 1.1e-6).certified
    assert solution.problem is problem


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: s["method"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_no_rank_ends_below_the_certified_lower_bound(rank: int, settings: dict[str, Any]) -> None:
    problem = random_problem(5, lam=0.02)
    optimum = certify(problem, Certified().solve(problem))
    solution = Descent(rank=rank, **(settings | {"epochs": 60})).solve(problem)
    assert solution.objective >= optimum.lower_bound
    assert certify(problem, solution).lower_bound <= optimum.objective + 1e-12
    for record in solution.history:
        assert record.objective >= optimum.lower_bound
        assert record.objective - record.gap <= optimum.objective + 1e-12


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_spectral_start_is_the_escape_from_zero_with_the_papers_columns_beside_it(rank: int) -> None:
    problem = random_problem(3, shapes=((12, 9), (4, 30)))
    solver = Descent(rank=rank, epochs=1, initialisation="spectral", seed=5)
    start = recorded(problem, solver)[1][0]
    papers = recorded(problem, Descent(rank=rank, epochs=1, seed=5))[1][0]
    escape = spectral_start(problem, problem.zero(), rank)
    for name, (u, v) in start.items():
        k = escape[name][0].shape[1]
        # the pairs are known up to their sign, the same in both
        torch.testing.assert_close(u[:, :k] @ v[:, :k].T, escape[name][0] @ escape[name][1].T)
        torch.testing.assert_close(v[:, k:], papers[name][1][:, : rank - k])
        assert not u[:, k:].any()
        assert u.shape[1] == v.shape[1] == rank
    assert any(u.shape[1] for u, _ in escape.values())
    assert problem.objective(start) < problem.objective(problem.zero())


@pytest.mark.parametrize("method", ["sgd", "adamw", "lbfgs"])
def test_both_starts_lead_to_the_optimum(method: Any) -> None:
    problem = random_problem(0, lam=0.1)
    optimum = Certified().solve(problem).objective
    for initialisation in ("paper", "spectral"):
        solver = Descent(rank=4, method=method, epochs=3000, initialisation=initialisation)  # type: ignore[arg-type]
        assert solver.solve(problem).objective == pytest.approx(optimum, abs=1e-4)


def test_where_no_pair_exceeds_lam_the_spectral_start_is_the_papers() -> None:
    problem = random_problem(0, lam=10.0)
    for name, pair in recorded(problem, Descent(rank=2, epochs=1, initialisation="spectral"))[1][0].items():
        papers = recorded(problem, Descent(rank=2, epochs=1))[1][0][name]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(pair, papers, strict=True))


def test_too_small_a_rank_is_reported_as_stationary() -> None:
    problem = random_problem(0)
    optimum = Certified().solve(problem)
    assert max(optimum.ranks.values()) == 2
    solution = Descent(rank=1, epochs=1000).solve(problem)
    assert solution.status is Status.STATIONARY
    assert solution.epochs < 1000
    assert solution.objective > optimum.objective + 1e-4


def test_lbfgs_counts_every_pass_of_its_line_search(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = 0
    closure = FactoredObjective.closure

    def counting(self: FactoredObjective, *arguments: Any) -> Callable[[], float]:
        evaluate = closure(self, *arguments)

        def counted() -> float:
            nonlocal passes
            passes += 1
            return evaluate()

        return counted

    monkeypatch.setattr(FactoredObjective, "closure", counting)
    solution = Descent(rank=3, method="lbfgs", epochs=40, tolerance=1e-14).solve(random_problem(1))
    assert solution.epochs == passes >= 40
    assert solution.history[-1].epoch == solution.epochs


def test_a_chosen_rate_that_is_too_large_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from tangentlora.solvers import descent

    problem = random_problem(1, lam=0.3)
    monkeypatch.setattr(descent, "sharpness", lambda *_: 1e-4)
    solution = Descent(rank=4, epochs=1000).solve(problem)
    assert solution.status is Status.GLOBAL_OPTIMUM
    assert all(record.objective < 2 * solution.history[0].objective for record in solution.history)


def test_a_chosen_rate_never_ends_as_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    from tangentlora.solvers import descent

    monkeypatch.setattr(descent, "sharpness", lambda *_: 1e-200)
    problem = random_problem(2)
    solution, seen = recorded(problem, Descent(rank=2, epochs=5))
    assert solution.status is Status.EPOCHS_SPENT
    assert [record.epoch for record in solution.history] == [0]  # all five epochs were taken back
    assert_same(solution.factors, seen[0])


def assert_same(found: Factors, expected: Factors) -> None:
    for name, pair in expected.items():
        for ours, theirs in zip(found[name], pair, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("method", ["sgd", "adamw", "lbfgs"])
@pytest.mark.parametrize("rate", [1e5, 1e300])
def test_an_absurd_rate_ends_as_diverged_with_a_usable_answer(method: Any, rate: float) -> None:
    problem = random_problem(0)
    solution, seen = recorded(problem, Descent(rank=2, method=method, learning_rate=rate, epochs=300))
    if method == "lbfgs" and rate == 1e5:  # the line search mends it
        assert solution.status is not Status.DIVERGED
        return
    assert solution.status is Status.DIVERGED
    assert "lower the learning rate" in solution.status.value
    assert 0 < solution.epochs < 300
    assert_same(solution.factors, seen[-1])
    assert len(seen) == len(solution.history)
    assert all(math.isfinite(record.objective + record.gap) for record in solution.history)
    certificate = certify(problem, solution)
    assert math.isfinite(certificate.gap)
    assert not certificate.certified


@pytest.mark.parametrize("shapes", [((6, 5), (4, 7)), ((60, 50), (30, 90))])
def test_the_same_seed_gives_the_same_bytes(shapes: tuple[tuple[int, int], ...]) -> None:
    for settings in METHODS:
        first, second, other = (
            Descent(rank=2, seed=seed, **(settings | {"epochs": 12})).solve(random_problem(1, shapes=shapes))
            for seed in (4, 4, 5)
        )
        assert_same(first.factors, second.factors)
        assert first.history == second.history
        assert first.trace == second.trace
        assert not torch.equal(first.factors["layer.0"][1], other.factors["layer.0"][1])


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    Descent(rank=2, epochs=3, perturbation=0.1).solve(random_problem())
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_chosen_rate_works_without_a_penalty(loss: str, momentum: float) -> None:
    problem = random_problem(3, loss, lam=0.0)
    solution = Descent(rank=4, epochs=120, momentum=momentum).solve(problem)
    assert solution.objective < 0.05 * solution.history[0].objective


@pytest.mark.parametrize("method", ["sgd", "adamw", "lbfgs"])
def test_where_zero_is_the_optimum_the_factors_decay(method: Any) -> None:
    problem = random_problem(lam=5.0)
    rate = 0.02 if method == "adamw" else None
    solution = Descent(rank=2, method=method, epochs=300, learning_rate=rate).solve(problem)
    assert solution.status is Status.GLOBAL_OPTIMUM
    assert solution.objective == pytest.approx(problem.objective(problem.zero()), abs=1e-6)


def test_a_problem_that_is_solved_already_ends_at_once() -> None:
    problem = random_problem(0, "squared", lam=0.0)
    solved = Problem(problem.jacobian, problem.y, problem.y, problem.loss, 0.0)
    solution = Descent(rank=1).solve(solved)
    assert (solution.status, solution.epochs) == (Status.GLOBAL_OPTIMUM, 0)


def test_minibatches_do_not_mix_up_the_examples_left_over() -> None:
    problem = random_problem(n_examples=7)
    solution = Descent(rank=2, epochs=5, batch_size=3, learning_rate=0.01).solve(problem)
    assert solution.epochs == 5
    whole = Descent(rank=2, epochs=5, learning_rate=0.01)
    assert_same(
        Descent(rank=2, epochs=5, batch_size=100, learning_rate=0.01).solve(problem).factors,
        whole.solve(problem).factors,
    )


def test_the_published_loop_trains_without_a_penalty_and_logs_it() -> None:
    problem = random_problem(1, lam=0.1)
    settings: dict[str, Any] = {"rank": 2, "epochs": 40, "tolerance": 1e-14}
    for more in ({}, {"learning_rate": 0.05, "momentum": 0.0, "batch_size": 3}):
        published = Descent(published=True, **settings, **more).solve(problem)
        plain, seen = recorded(problem.with_lam(0.0), Descent(**settings, **more))
        assert_same(published.factors, plain.factors)
        assert published.problem is problem
        for record, factors in zip(published.history, seen, strict=True):
            assert record.objective == pytest.approx(problem.factored_objective(factors), rel=1e-12)
            assert record.gap == pytest.approx(problem.gap(factors), rel=1e-9)
        assert published.history[-1].objective > plain.history[-1].objective + 1e-3


@pytest.mark.parametrize("published", [False, True])
def test_the_trace_is_the_objective_at_the_start_of_every_epoch(published: bool) -> None:
    problem = random_problem(1, lam=0.1)
    solution = Descent(rank=2, epochs=30, learning_rate=0.03, published=published).solve(problem)
    assert [epoch for epoch, _ in solution.trace] == list(range(31))
    traced = dict(solution.trace)
    for record in solution.history:
        assert traced[record.epoch] == pytest.approx(record.objective, rel=1e-12)


def test_the_trace_leaves_out_what_was_taken_back() -> None:
    solution = Descent(rank=2, learning_rate=1e5, epochs=300).solve(random_problem(0))
    assert solution.status is Status.DIVERGED
    assert [epoch for epoch, _ in solution.trace] == list(range(solution.history[-1].epoch + 1))
    assert solution.trace[-1][1] == pytest.approx(solution.history[-1].objective, rel=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        *({"rank": rank, "momentum": momentum} for rank in (1, 3, 30) for momentum in (0.0, 0.9)),
        {"rank": 4, "momentum": 0.9, "freeze_a": True},
        {"rank": 4, "momentum": 0.5, "batch_size": 3},
        {"rank": 4, "momentum": 0.9, "published": True},
    ],
    ids=str,
)
def test_training_in_the_span_is_training_in_the_original_coordinates(settings: dict[str, Any]) -> None:
    # the Jacobian's rows are few for the first two layers and, at ranks that it allows, many for a third
    rank = settings["rank"]
    small = [(10, 8)] if rank < 8 else []
    problem = random_problem(7, shapes=[(60, 50), (30, 90), *small], n_examples=12)
    solver = Descent(epochs=200, learning_rate=0.03, seed=2, tolerance=1e-12, **settings)
    solution, seen = recorded(problem, solver)
    assert [basis is None for basis in problem.reduced[1].rows.values()] == [
        False,
        False,
        *(True for _ in small),
    ]
    assert (rank > max(len(rows.x) for rows in problem.jacobian.layers.values())) == (rank == 30)
    posed = problem.with_lam(0.0) if solver.published else problem
    expected = handwritten(posed, seen[0], solver, 200)
    assert solution.history[-1].epoch == 200
    for record, found in zip(solution.history, seen, strict=True):
        for name, pair in expected[record.epoch].items():
            for ours, theirs in zip(found[name], pair, strict=True):
                assert float((ours - theirs).norm()) <= 1e-9 * float(theirs.norm())
        assert record.objective == pytest.approx(problem.factored_objective(found), rel=1e-11)
        assert record.gap == pytest.approx(problem.gap(found), rel=1e-9)


@pytest.mark.parametrize("method", ["sgd", "adamw", "lbfgs"])
def test_what_a_monitor_keeps_stays_as_it_was(method: Any) -> None:
    problem = random_problem(1)
    kept: list[tuple[Factors, float]] = []

    def monitor(record: Record, factors: Factors) -> dict[str, float]:
        kept.append((factors, record.objective))
        return {}

    Descent(rank=2, method=method, epochs=10, learning_rate=0.02).solve(problem, monitor)
    for factors, objective in kept:
        assert problem.factored_objective(factors) == pytest.approx(objective, rel=1e-11)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 5}, r"got rank 5, expected 1 to 4, the smaller side .*: change --rank"),
        ({"rank": 0}, r"got rank 0, expected 1 to 4"),
        ({"epochs": 0}, r"got 0 epochs, expected at least one: change --epochs"),
        ({"learning_rate": 0.0}, r"got learning rate 0.0, expected a positive one: change --learning-rate"),
        ({"learning_rate": -1.0}, r"got learning rate -1.0"),
        ({"learning_rate": math.nan}, r"got learning rate nan"),
        ({"learning_rate": math.inf}, r"got learning rate inf"),
        ({"momentum": 1.0}, r"got momentum 1.0, .* expected momentum in \[0, 1\)"),
        ({"momentum": -0.1}, r"got momentum -0.1"),
        ({"perturbation": -1.0}, r"perturbation -1.0 .* at least 0"),
        ({"perturbation": math.nan}, r"perturbation nan"),
        ({"batch_size": 0}, r"minibatches of 0, expected .* at least one example"),
        ({"method": "lbfgs", "batch_size": 2}, r"got minibatches of 2 for L-BFGS, .* use --solver sgd"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    problem = random_problem()
    with pytest.raises(InputError, match=message):
        Descent(**({"rank": 2} | settings)).solve(problem)
    with pytest.raises(InputError, match=message):
        Descent(**({"rank": 2} | settings)).check(problem)


def test_progress_is_shown_on_stderr_and_only_if_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    problem = random_problem()
    Descent(rank=2, epochs=3).solve(problem)
    assert capsys.readouterr() == ("", "")
    Descent(rank=2, epochs=3).solve(problem, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "rank 2" in err
    assert "3/3" in err


def test_on_the_device_of_the_problem(device: torch.device) -> None:
    problem = random_problem(2, lam=0.1, device=device)
    solution = Descent(rank=4, method="lbfgs").solve(problem)
    assert solution.status is Status.GLOBAL_OPTIMUM
    assert all(w.device.type == device.type for pair in solution.factors.values() for w in pair)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_chosen_rate_never_leaves_the_objective_above_its_start(seed: int, momentum: float) -> None:
    problem = random_problem(seed, lam=0.002)
    solution = Descent(rank=3, epochs=150, momentum=momentum, seed=seed).solve(problem)
    start = solution.trace[0][1]
    assert max(value for _, value in solution.trace) <= start + 1e-9 * max(1.0, start)
    assert solution.learning_rate == solution.rates[-1][1] <= solution.rates[0][1]


def test_a_given_rate_that_ends_above_its_start_is_said() -> None:
    problem = random_problem(1, "squared", lam=0.01)
    fine = Descent(rank=3, epochs=40, momentum=0.0).solve(problem)
    assert fine.learning_rate is not None
    assert fine.status is not Status.ABOVE_START
    spoiled = Descent(rank=3, epochs=40, momentum=0.0, learning_rate=40 * fine.rates[0][1]).solve(problem)
    assert spoiled.status in (Status.ABOVE_START, Status.DIVERGED)
    assert "lower the learning rate" in spoiled.status.value


def test_a_curve_of_minibatches_has_one_measure() -> None:
    problem = random_problem(n_examples=12)
    solution = Descent(rank=2, epochs=9, batch_size=5, learning_rate=0.05, momentum=0.0).solve(problem)
    logged = {record.epoch: record.objective for record in solution.history}
    trace = dict(solution.trace)
    assert set(logged) <= set(trace)
    for epoch, objective in logged.items():
        assert trace[epoch] == pytest.approx(objective, rel=1e-9)


def test_a_momentum_without_a_say_is_refused() -> None:
    with pytest.raises(InputError, match=r"got momentum 0\.5 for adamw, where it has no say"):
        Descent(method="adamw", momentum=0.5)
    with pytest.raises(InputError, match=r"got an initial scale of 0\.0, expected a positive number"):
        Descent(init_scale=0.0)
