"""Where descent and full fine-tuning begin when they are given a start."""

from __future__ import annotations

import pytest
import torch

from random_problems import random_problem
from tangentlora.errors import InputError
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.proximal import Proximal
from tangentlora.solvers.starts import given_start, paper_start


def test_given_columns_come_first_and_the_paper_s_fill_up():
    problem = random_problem(1, lam=0.02)
    names = list(problem.jacobian.shapes)
    m, n = problem.jacobian.shapes[names[0]]
    u, v = torch.randn(m, 1), torch.randn(n, 1)
    start, paper = given_start(problem, {names[0]: (u, v)}, 3, 7), paper_start(problem, 3, 7)
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
