"""Where descent and full fine-tuning begin when they are given a start."""

from __future__ import annotations

import pytest
import torch

from random_problems import random_problem
from tangentlora.errors import InputError
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.proximal import Proximal
from tangentlora.solvers.starts import given_start, paper_start, peft_start


def test_given_columns_come_first_and_the_paper_s_fill_up():
    problem = random_problem(1, lam=0.02)
    names = list(problem.jacobian.shapes)
    m, n = problem.jacobian.shapes[names[0]]
    u, v = torch.randn(m, 1), torch.randn(n, 1)
    paper = paper_start(problem, 3, 7)
    start = given_start(problem, {names[0]: (u, v)}, paper, 3)
    assert torch.equal(start[names[0]][0], torch.cat([u.double(), paper[names[0]][0]], 1)[:, :3])
    assert torch.equal(start[names[0]][1], torch.cat([v.double(), paper[names[0]][1]], 1)[:, :3])
    for name in names[1:]:
        assert all(torch.equal(*pair) for pair in zip(start[name], paper[name], strict=True))


@pytest.mark.parametrize("solver", [Descent(rank=4, epochs=3), Proximal(epochs=3), Certified()])
def test_a_solver_started_at_the_optimum_is_there_at_once(solver):
    problem = random_problem(1, lam=0.05)
    optimum = Certified(1e-10).solve(problem)
    assert max(optimum.ranks.values()) > 0
    first = solver.solve(problem, start=optimum.factors).history[0]
    cold = solver.solve(problem).history[0]
    assert first.objective == pytest.approx(optimum.objective, abs=8e-3)  # descent has its random columns too
    assert cold.objective > first.objective + 1e-2


def test_more_columns_than_the_rank_and_other_layers_are_refused():
    problem = random_problem(1, lam=0.02)
    name, (m, n) = next(iter(problem.jacobian.shapes.items()))
    with pytest.raises(InputError, match=r"got a start of rank 2 for LoRA of rank 1, .* compress"):
        Descent(rank=1).solve(problem, start={name: (torch.zeros(m, 2), torch.zeros(n, 2))})
    with pytest.raises(InputError, match="start from an answer to a problem with these layers"):
        Descent(rank=1).solve(problem, start={"elsewhere": (torch.zeros(m, 1), torch.zeros(n, 1))})


def test_the_scale_multiplies_what_is_drawn_and_pefts_start_is_wider():
    problem = random_problem(1, lam=0.02)
    paper, peft = paper_start(problem, 40, 3), peft_start(problem, 40, 3)
    for name, (m, n) in problem.jacobian.shapes.items():
        assert not paper[name][0].any()
        assert paper[name][0].shape == peft[name][0].shape == (m, 40)
        assert torch.equal(2 * paper[name][1], paper_start(problem, 40, 3, 2.0)[name][1])
        assert float(peft[name][1].abs().max()) <= n**-0.5
        # uniform in ±1/√n: the mean square is 1/(3n), here of 200 numbers or more
        assert float(peft[name][1].square().mean()) == pytest.approx(1 / (3 * n), rel=0.3)
        assert float(paper[name][1].square().mean()) == pytest.approx(1 / (40 * n**2), rel=0.4)


def test_a_run_begins_where_its_initialisation_says():
    problem = random_problem(1, lam=0.02)
    for solver, drawn in [
        (Descent(rank=3, epochs=1, seed=5, init_scale=7.0), paper_start(problem, 3, 5, 7.0)),
        (Descent(rank=3, epochs=1, seed=5, initialisation="peft"), peft_start(problem, 3, 5)),
    ]:
        first = solver.solve(problem).history[0].objective
        squares = sum(float(v.square().sum()) for _, v in drawn.values())
        expected = problem.empirical_loss(problem.f0) + 0.5 * problem.lam * squares
        assert first == pytest.approx(expected, rel=1e-9)


def test_a_start_beside_the_spectral_one_is_refused():
    problem = random_problem(1, lam=0.02)
    with pytest.raises(InputError, match="got a start and the spectral initialisation, expected one"):
        Descent(rank=2, epochs=1, initialisation="spectral").solve(problem, start=problem.zero())
