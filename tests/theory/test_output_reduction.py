"""Which directions the outputs need, against dense algebra and the search among all choices."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from generous_answers import dense_outputs, generous
from tangentlora.blocks import multiply
from tangentlora.errors import InputError
from tangentlora.problem.objective import nuclear_norm
from tangentlora.theory.output_reduction import (
    Directions,
    distance,
    parameters,
    reduce_by_layers,
    theorem_count,
)
from tangentlora.theory.rank_reduction import reduce_rank

LOSSES = ("cross_entropy", "logistic", "squared")


@pytest.mark.parametrize("loss", LOSSES)
def test_layer_by_layer_reaches_what_theorem_1_promises(loss):
    problem, factors = generous(loss)
    reduced = reduce_by_layers(problem, factors)
    assert theorem_count(factors) > problem.constraints
    assert theorem_count(reduced) <= problem.constraints
    assert nuclear_norm(reduced) <= nuclear_norm(factors) * (1 + 1e-12)
    torch.testing.assert_close(
        dense_outputs(problem, reduced), dense_outputs(problem, factors), rtol=0, atol=1e-10
    )
    assert theorem_count(reduce_rank(problem, factors)) <= problem.constraints


def test_reduction_refuses_the_answer_of_another_problem():
    problem, factors = generous()
    with pytest.raises(InputError, match="reduce the answer of the problem it was made for"):
        reduce_by_layers(problem, {name: (v, u) for name, (u, v) in factors.items()})


def test_counts():
    _, factors = generous()
    assert theorem_count(factors) == 3 * 28
    assert parameters(factors) == 7 * (22 + 22 + 18)


@pytest.mark.parametrize("loss", LOSSES)
def test_effects_are_what_the_outputs_lose(loss):
    problem, factors = generous(loss)
    directions = Directions.of(factors)
    w = directions.effects(problem)
    whole = dense_outputs(problem, factors)
    for gone in ([0], [3, 8, 20], list(range(21))):
        kept = directions.keep(set(range(21)) - set(gone))
        torch.testing.assert_close(
            whole - dense_outputs(problem, kept), w[gone].sum(0).reshape(whole.shape), rtol=0, atol=1e-11
        )


def test_the_order_gives_up_what_the_outputs_miss_least():
    problem, factors = generous(rank=2)
    directions = Directions.of(factors)
    w, gone = directions.effects(problem), []
    order = directions.order_by_outputs(problem)
    assert sorted(order) == list(range(6))
    for _ in range(6):
        rest = [j for j in range(6) if j not in gone]
        gone.append(min(rest, key=lambda j: float(w[[*gone, j]].sum(0).norm())))
    assert order == gone
    # the first is the best of all, and the order is not that of weight energy
    single = [float(w[list(one)].sum(0).norm()) for one in combinations(range(6), 1)]
    assert order[0] == single.index(min(single))
    assert order != directions.sigma.argsort().tolist()


def test_wide_layers_come_first_in_the_order():
    problem, factors = generous()
    u, v = factors["layer.1"]
    factors["layer.1"] = 0.01 * u, v
    directions = Directions.of(factors)
    order = directions.order_by_outputs(problem, 2)
    kept = directions.keep(order[-6:])
    assert [u.shape[1] for u, _ in kept.values()] == [2, 2, 2]
    free = directions.keep(directions.order_by_outputs(problem)[-6:])
    assert [u.shape[1] for u, _ in free.values()] != [2, 2, 2]


def test_giving_up_by_energy_leaves_the_strongest_of_every_layer():
    _, factors = generous()
    directions = Directions.of(factors)
    order = directions.order_by_energy(2)
    assert sorted(order) == list(range(21))
    kept = multiply(directions.keep(order[-6:]))
    for name, strongest in multiply(directions.strongest(dict.fromkeys(factors, 2))).items():
        torch.testing.assert_close(kept[name], strongest)
    free = directions.order_by_energy()
    assert directions.sigma[free].tolist() == sorted(directions.sigma.tolist())


def test_the_distance_is_that_of_the_dense_updates():
    _, factors = generous()
    other = Directions.of(factors).strongest(dict.fromkeys(factors, 2))
    dense, less = multiply(factors), multiply(other)
    expected = sum(float((dense[name] - less[name]).square().sum()) for name in dense) ** 0.5
    assert distance(factors, other) == pytest.approx(expected, rel=1e-10)
    assert distance(factors, factors) < 1e-6


def test_truncation_by_energy_is_that_of_dense_svds():
    _, factors = generous()
    directions = Directions.of(factors)
    names = list(factors)
    found = directions.strongest(dict(zip(names, (3, 0, 2), strict=True)))
    for name, rank in zip(names, (3, 0, 2), strict=True):
        left, sigma, right = torch.linalg.svd(multiply(factors)[name], full_matrices=False)
        expected = left[:, :rank] * sigma[:rank] @ right[:rank]
        torch.testing.assert_close(multiply(found)[name], expected, rtol=0, atol=1e-12)


def test_truncation_within_a_size_takes_the_largest_that_fit():
    _, factors = generous()
    directions = Directions.of(factors)
    size = 5 * 22
    found = directions.strongest_within(size)
    assert parameters(found) <= size < parameters(found) + 18
    values = sorted((float(s) for s in directions.sigma), reverse=True)
    assert max(float(torch.linalg.matrix_norm(d, 2)) for d in multiply(found).values()) == pytest.approx(
        values[0]
    )
    assert parameters(directions.strongest_within(17)) == 0
    assert parameters(directions.strongest_within(10**6)) == parameters(factors)


def test_directions_of_zero_are_none():
    problem, factors = generous()
    nothing = {name: (u[:, :0], v[:, :0]) for name, (u, v) in factors.items()}
    directions = Directions.of(nothing)
    assert directions.order_by_outputs(problem) == []
    assert parameters(directions.keep([])) == 0
