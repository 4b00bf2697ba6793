"""A Jacobian shared among processes gives the products, the answers and the certificates of the whole one."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from process_groups import run_together
from random_jacobians import random_jacobian
from random_problems import random_problem
from sharded_steps import (
    SOLVERS,
    arguments,
    badly_shared,
    drifting,
    every_product,
    killed_in_descent,
    products,
    solved,
)
from tangentlora.errors import InputError
from tangentlora.processes import GroupError
from tangentlora.solvers.certified import Certified
from tangentlora.theory.certificate import certify

SEEDS = list(range(10))
"""Some of these have fewer examples than there are processes, and examples and layers without rows."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, torch.Tensor]]]:
    """What each of three processes gets from every product, for each seed."""
    return run_together(3, tmp_path_factory.mktemp("products"), every_product, SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_product_is_that_of_the_whole(shared: list[list[dict[str, torch.Tensor]]], seed: int) -> None:
    whole = random_jacobian(seed)
    expected = products(whole, arguments(whole))
    for found in shared:
        assert found[seed].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[seed][name], value)
            assert torch.equal(found[seed][name], shared[0][seed][name])  # to the last bit


@pytest.mark.parametrize("seed", SEEDS)
def test_forward_and_adjoint_are_adjoint(shared: list[list[dict[str, torch.Tensor]]], seed: int) -> None:
    given, found = arguments(random_jacobian(seed)), shared[0][seed]
    a, delta, factors, d = (given[name] for name in ("a", "delta", "factors", "d"))
    pulled = sum(float((found[f"M {name}"] * block).sum()) for name, block in delta.items())
    assert float((found["forward"] * a).sum()) == pytest.approx(pulled, rel=1e-12, abs=1e-12)
    # ⟨J(Uvᵀ + uVᵀ), a⟩ = Σ_t ⟨U, Mv⟩ + ⟨V, Mᵀu⟩, and J(uvᵀ) is half of it at d = (u, v)
    for direction, outputs in ((d, found["differential"]), (factors, 2 * found["point"])):
        pairs = [(found[f"pairs {name} 0"], found[f"pairs {name} 1"], *direction[name]) for name in factors]
        pulled = sum(float((Mv * U).sum() + (Mu * V).sum()) for Mv, Mu, U, V in pairs)
        assert float((outputs * a).sum()) == pytest.approx(pulled, rel=1e-12, abs=1e-12)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """The certificate of every solver's answer, for one process, two and four."""
    found = {1: solved()}
    for count in (2, 4):
        of_all = run_together(count, tmp_path_factory.mktemp(f"{count} processes"), solved)
        assert all(result == of_all[0] for result in of_all)  # to the last bit
        found[count] = of_all[0]
    return found


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_certificate_does_not_depend_on_the_number_of_processes(
    certificates: dict[int, dict[str, Any]], solver: str
) -> None:
    one = certificates[1][solver]
    assert one["certified"] == (solver == "certified")
    for count in (2, 4):
        other = certificates[count][solver]
        assert other.keys() == one.keys()
        for name in ("objective", "lower_bound", "factored_objective", "dual_scale", "lam"):
            assert math.isclose(other[name], one[name], rel_tol=1e-10)
        for name in ("gap", "factored_gap", "rounding"):
            assert abs(other[name] - one[name]) <= 1e-10 * max(1.0, one["objective"])
        assert other["spectral_norms"] == pytest.approx(one["spectral_norms"], rel=1e-10)
        for name in ("certified", "ranks", "constraints", "n_examples", "n_outputs"):
            assert other[name] == one[name]


def test_the_optimum_is_that_of_the_whole_problem(certificates: dict[int, dict[str, Any]]) -> None:
    problem = random_problem(4, n_examples=23, shapes=((9, 8), (7, 10)))
    whole = asdict(certify(problem, Certified().solve(problem)))
    for found in certificates.values():
        for name in ("objective", "lower_bound"):
            assert math.isclose(found["certified"][name], whole[name], rel_tol=1e-10)
        assert (found["certified"]["ranks"], found["certified"]["constraints"]) == (
            whole["ranks"],
            whole["constraints"],
        )


@pytest.mark.parametrize("kind", ["none", "two", "beyond"])
def test_every_example_is_in_one_process(tmp_path: Path, kind: str) -> None:
    for error in run_together(2, tmp_path, badly_shared, kind):
        assert isinstance(error, InputError)
        assert "examples in no process or in several, expected each in one" in str(error)


def test_a_drift_by_one_bit_is_an_error_in_every_product(tmp_path: Path) -> None:
    for said in run_together(3, tmp_path, drifting):
        for message in said:
            assert "got other numbers in process 1 than in process 0" in message


def test_a_process_that_is_killed_in_the_middle_of_a_run_ends_it(tmp_path: Path) -> None:
    found = run_together(3, tmp_path, killed_in_descent)
    assert found[1] is None
    for said in (found[0], found[2]):
        assert said.startswith("got no answer from another process (")


def test_an_error_is_never_taken_for_bad_input() -> None:
    assert not issubclass(GroupError, InputError | OSError)
