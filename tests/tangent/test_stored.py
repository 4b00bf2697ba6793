"""A Jacobian that stays in its store is the one in memory: the same products, the same optimum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from random_jacobians import random_factors, random_jacobian
from random_problems import random_problem
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.models.targets import Target
from tangentlora.problem.objective import Problem
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.proximal import Proximal
from tangentlora.solvers.solution import Solver, Status
from tangentlora.tangent import (
    jacobian as jacobian_module,
    shard_passes,
    store_writer,
    stored as stored_module,
)
from tangentlora.tangent.band_products import BandedRows
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.operator import Point
from tangentlora.tangent.store import open_shards, save_tangent
from tangentlora.tangent.stored import StoredJacobian, in_blocks
from tangentlora.tangent.tangent import FORMAT, Tangent
from tangentlora.theory.certificate import certify


def stored(
    jacobian: Jacobian, f0: torch.Tensor, folder: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> StoredJacobian:
    """Return the Jacobian from a store of small shards."""
    monkeypatch.setattr(store_writer, "SHARD_BYTES", shard_bytes)
    targets = tuple(
        Target(name=name, module=name, shape=shape, transposed=False, rows=None)
        for name, shape in jacobian.shapes.items()
    )
    identity = {"format": FORMAT, "n_examples": len(f0), "targets": []}
    save_tangent(Tangent(f0, jacobian, targets, identity), folder)
    read, operator = in_blocks(folder, open_shards(folder), targets)
    assert torch.equal(read, f0.float())
    return operator


@pytest.mark.parametrize("seed", range(12))
def test_every_product_is_that_of_the_rows_in_memory(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = random_jacobian(seed, dtype=torch.float32)
    f0 = memory.zeros()
    operator = stored(memory, f0, tmp_path / "store", monkeypatch, 64).to(torch.float64)
    assert len(operator.passes.shards) >= min(2, len(f0))
    memory = memory.to(torch.float64)
    C = torch.randn(2, memory.n_outputs, dtype=torch.float64)
    for ours, theirs in ((operator, memory), (operator.combine_outputs(C), memory.combine_outputs(C))):
        a = torch.randn_like(theirs.zeros())
        factors, d = (random_factors(theirs, (2, 1, 3)) for _ in range(2))
        delta = {name: u @ v.T for name, (u, v) in factors.items()}
        here, there = ours.at(factors), theirs.at(factors)

        def weigh(z: torch.Tensor, examples: torch.Tensor) -> torch.Tensor:
            return z * (1 + examples.double()).unsqueeze(1)

        for found, expected in (
            (ours.forward(delta), theirs.forward(delta)),
            (ours.adjoint(a), theirs.adjoint(a)),
            (here.forward(), there.forward()),
            (here.adjoint(a), there.adjoint(a)),
            (here.differential(d), there.differential(d)),
            (here.curvature(d, weigh), there.curvature(d, weigh)),
            (ours.gram(), theirs.gram()),
            (ours.select([0]).gram(), theirs.select([0]).gram()),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
        for (times, back), (times_too, back_too), (u, v) in zip(
            ours.adjoint_products(a).values(),
            theirs.adjoint_products(a).values(),
            factors.values(),
            strict=False,
        ):
            torch.testing.assert_close(times(v), times_too(v), rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(back(u), back_too(u), rtol=1e-11, atol=1e-12)
        for name, extent in theirs.extents.items():
            assert (ours.extents[name].rows, ours.extents[name].longest) == (extent.rows, extent.longest)
            torch.testing.assert_close(ours.extents[name].sizes, extent.sizes, rtol=1e-12, atol=0)
        assert ours.nbytes == sum(8 * (r.x.numel() + r.g.numel()) for r in theirs.layers.values())


def headed(n: int, heads: int = 3, width: int = 4) -> Jacobian:
    """Return a layer of one row an example and one with a row in each of some bands, in float32."""
    generator = torch.Generator().manual_seed(n)
    g = torch.zeros(n, heads, 2, heads, width)
    for head in range(heads):
        g[:, head, :, head] = torch.randn(n, 2, width, generator=generator)
    layers = {}
    for name, rows in (("query", g.sum(1).reshape(n, 2, -1)), ("value", g.reshape(n * heads, 2, -1))):
        x = torch.randn(len(rows), 7, generator=generator)
        layers[name] = LayerRows(x, rows, torch.full((n,), len(rows) // n))
    return Jacobian(layers)


def everything(operator: StoredJacobian | Jacobian) -> list[object]:
    """Return all products of an operator, with arguments that depend on its shapes alone."""
    torch.manual_seed(0)
    a, factors = torch.randn_like(operator.zeros()), []
    for _ in range(2):
        shapes = operator.shapes.items()
        factors.append({t: (torch.randn(m, 3).to(a), torch.randn(n, 3).to(a)) for t, (m, n) in shapes})
    one, other = factors
    point = operator.at(one)
    return [
        operator.forward({t: u @ v.T for t, (u, v) in one.items()}), operator.adjoint(a), point.forward(),
        point.adjoint(a), point.differential(other),
        point.curvature(other, lambda z, examples: z * (1 + examples)[:, None]),
        {t: extent.sizes for t, extent in operator.extents.items()}, operator.select([3, 1, 3]).gram(),
        operator.gram(), operator.within(one).gram(), operator.within({"value": one["value"]}).forward({}),
    ]  # fmt: skip


@pytest.fixture(params=[1, 2**22], ids=["one example a piece", "one piece"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PIECE", "_FEWEST"):
        monkeypatch.setattr(shard_passes, name, request.param)
    monkeypatch.setattr(stored_module, "LARGE", request.param)


@pytest.mark.parametrize("shard_bytes", [1000, 2**20])
@pytest.mark.usefixtures("pieces")
def test_bands_stay_bands_from_the_store_to_the_product(
    shard_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = headed(11)
    operator = stored(memory, memory.zeros(), tmp_path / "store", monkeypatch, shard_bytes)
    C, whole = torch.tensor([[1.0, -1.0]]).double(), memory.to(torch.float64)
    operator = operator.to(torch.float64)
    expected = [everything(theirs) for theirs in (whole, whole.combine_outputs(C))]

    def refuse(_: BandedRows) -> torch.Tensor:
        raise AssertionError("all columns of g were made")

    monkeypatch.setattr(BandedRows, "g", property(refuse))
    for theirs, ours in zip(expected, (operator, operator.combine_outputs(C)), strict=True):
        torch.testing.assert_close(everything(ours), theirs, rtol=1e-12, atol=1e-12)
    for _, block in operator.blocks():
        assert isinstance(block.layers["value"], BandedRows)
        with pytest.raises(AssertionError, match="all columns"):
            block.dense()


ROUNDINGS = 160
"""At most so many lie between the rows and a number of a product of `headed(9)`: casts, sums over at most 12
columns, 3 pairs of factors, 7 inputs, 27 rows and 9 examples, and all of it twice for the curvature."""


def magnitudes(jacobian: Jacobian) -> Jacobian:
    """Return the Jacobian whose rows are the absolute values, in float64."""
    rows = {
        name: replace(layer, x=layer.x.abs(), g=layer.g.abs())
        for name, layer in jacobian.to(torch.float64).layers.items()
    }
    return Jacobian(rows)


def absolute(factors: Factors) -> Factors:
    return {name: (u.abs(), v.abs()) for name, (u, v) in factors.items()}


def assert_rounded(found: object, expected: object, size: object) -> None:
    """Hold |found − expected| against ROUNDINGS · 2⁻²⁴ · size, which sums in any order keep.

    `size` is the same product of absolute values: what cancels is rounded as well (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1).
    """
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert isinstance(size, torch.Tensor)
        assert found.dtype == torch.float64
        assert bool(((found - expected).abs() <= ROUNDINGS * 2.0**-24 * size).all())
        return
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert isinstance(size, dict)
        assert found.keys() == expected.keys() == size.keys()
        found, expected, size = list(found.values()), list(expected.values()), list(size.values())
    assert isinstance(found, list | tuple)
    assert isinstance(expected, list | tuple)
    assert isinstance(size, list | tuple)
    for part in zip(found, expected, size, strict=True):
        assert_rounded(*part)


def test_rough_products_are_those_in_float64_to_the_rounding_of_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = headed(9)
    operator = stored(memory, memory.zeros(), tmp_path / "store", monkeypatch, 1000).to(torch.float64)
    one, other = (
        {t: (torch.randn(m, 3).double(), torch.randn(n, 3).double()) for t, (m, n) in memory.shapes.items()}
        for _ in range(2)
    )
    a = torch.randn(9, 2, dtype=torch.float64)
    seen = []

    def weigh(z: torch.Tensor, examples: torch.Tensor) -> torch.Tensor:
        seen.append(z.dtype)
        return z * (1 + examples)[:, None]

    def products(point: Point, d: Factors, a: torch.Tensor) -> list[object]:
        return [point.forward(), point.differential(d), point.adjoint(a), point.curvature(d, weigh)]

    sizes = products(magnitudes(memory).at(absolute(one)), absolute(other), a.abs())
    exact, rough = operator.at(one), operator.at(one).rough()
    assert_rounded(products(rough, other, a), products(exact, other, a), sizes)
    assert set(seen) == {torch.float64}
    assert not torch.equal(rough.forward(), exact.forward())
    point = memory.to(torch.float64).at(one)
    assert point.rough() is point  # few rows in memory: nothing to gain
    monkeypatch.setattr(jacobian_module, "MANY", 1)
    single = point.rough()
    assert single is not point
    assert point.jacobian.single is point.jacobian.single  # one copy for all points
    assert_rounded(products(single, other, a), products(point, other, a), sizes)
    assert set(seen) == {torch.float64}
    assert not torch.equal(single.forward(), point.forward())


def test_the_sum_does_not_depend_on_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = headed(40)
    operator = stored(memory, memory.zeros(), tmp_path / "store", monkeypatch, 1000).to(torch.float64)
    a, before, sums = torch.randn(40, 2).double(), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            sums.append(operator.adjoint(a)["value"])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*sums)


def test_a_shard_that_cannot_be_read_ends_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = headed(30)
    operator = stored(memory, memory.zeros(), tmp_path / "store", monkeypatch, 1000)
    threads = torch.get_num_threads()
    (tmp_path / "store" / operator.passes.shards[-2].file).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        operator.adjoint(operator.zeros())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("seed", range(4))
def test_the_differential_is_the_derivative_of_the_outputs(seed: int) -> None:
    jacobian = random_jacobian(seed)
    factors, d = (random_factors(jacobian, (2, 1, 3)) for _ in range(2))

    def outputs(t: torch.Tensor) -> torch.Tensor:
        moved = {n: (u + t * d[n][0], v + t * d[n][1]) for n, (u, v) in factors.items()}
        return jacobian.at(moved).forward()

    _, expected = torch.autograd.functional.jvp(
        outputs, torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    )
    torch.testing.assert_close(jacobian.at(factors).differential(d), expected, rtol=1e-10, atol=1e-11)


SOLVERS: list[tuple[Solver, float]] = [
    (Certified(), 1e-9),
    (Descent(rank=3, epochs=40), 1e-6),
    (Proximal(epochs=40), 1e-6),
]


@pytest.mark.parametrize(("solver", "agreement"), SOLVERS, ids=lambda value: type(value).__name__)
def test_solvers_and_certificates_take_it_as_they_take_rows_in_memory(
    solver: Solver, agreement: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = random_problem(3, n_examples=30)
    single = memory.jacobian.to(torch.float32)
    assert isinstance(single, Jacobian)
    memory = replace(memory, jacobian=single, f0=memory.f0.float())
    operator = stored(single, memory.f0.float(), tmp_path / "store", monkeypatch, 1000)
    assert 3 < len(operator.passes.shards) < 30
    problem = Problem(operator, memory.f0, memory.y, memory.loss, memory.lam)
    ours, theirs = certify(problem, solver.solve(problem)), certify(memory, solver.solve(memory))
    assert ours.objective == pytest.approx(theirs.objective, rel=agreement)
    assert ours.constraints == theirs.constraints
    if isinstance(solver, Certified):
        assert ours.certified
        assert solver.solve(problem).status is Status.GLOBAL_OPTIMUM
    same = certify(problem, solver.solve(memory))
    there = certify(memory, solver.solve(memory))
    for field in ("objective", "lower_bound", "gap", "rounding", "dual_scale"):
        assert getattr(same, field) == pytest.approx(getattr(there, field), rel=1e-12, abs=1e-13)


def test_what_needs_single_rows_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = random_problem(1)
    single = memory.jacobian.to(torch.float32)
    assert isinstance(single, Jacobian)
    operator = stored(single, memory.f0.float(), tmp_path / "store", monkeypatch, 100)
    problem = Problem(operator, memory.f0, memory.y, memory.loss, memory.lam)
    with pytest.raises(InputError, match=r"lies in a store .* raise --memory"):
        Descent(rank=2, batch_size=3).solve(problem)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = random_problem(1)
    single = memory.jacobian.to(torch.float32)
    assert isinstance(single, Jacobian)
    single.layers["layer.1"].g[2, 0, 1] = torch.inf
    operator = stored(single, memory.f0.float(), tmp_path / "store", monkeypatch, 100)
    assert not operator.is_finite()
    with pytest.raises(InputError, match="not finite"):
        Problem(operator, memory.f0, memory.y, memory.loss, memory.lam)
