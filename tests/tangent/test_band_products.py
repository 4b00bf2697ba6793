"""Bands of columns are found where they are, and only there; their products are those of the dense rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tangentlora.tangent import band_products as module
from tangentlora.tangent.band_products import BandedRows, find_bands, in_bands, unfolded
from tangentlora.tangent.jacobian import Jacobian, concatenate
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.rows import Rows
from tangentlora.tangent.span import restrict


def banded(n: int, h: int, own: int, k: int, w: int, seed: int = 0) -> LayerRows:
    """Return rows of n examples, `own` in each of h bands of w columns, with every column."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.zeros(n, h, own, k, h, w, dtype=torch.float64)
    for band in range(h):
        g[:, band, :, :, band] = torch.randn(n, own, k, w, generator=generator, dtype=torch.float64)
    rows = n * h * own
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return LayerRows(x, g.reshape(rows, k, h * w), torch.full((n,), h * own))


def found(rows: Rows) -> BandedRows:
    """Return the rows in bands, which must be there."""
    assert isinstance(rows, LayerRows)
    bands = find_bands(rows)
    assert bands is not None
    return bands


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


CASES = [(2, 1, 1), (3, 2, 2), (4, 1, 3), (2, 3, 1)]


@pytest.mark.parametrize(("h", "own", "k"), CASES)
@pytest.mark.parametrize("rank", [0, 2, 9])  # none, fewer and more columns than a band has
def test_products_band_by_band_are_those_of_the_dense_rows(h: int, own: int, k: int, rank: int) -> None:
    rows = banded(6, h, own, k, 4)
    bands = found(rows)
    assert bands.bands.shape == (h, 6, own, k, 4)
    assert torch.equal(bands.g, rows.g)
    assert (bands.shape, bands.n_outputs) == (rows.shape, k)
    dense, short = Jacobian({"t": rows}), Jacobian({"t": bands})
    assert dense.nbytes - short.nbytes == rows.g.nbytes - rows.g.nbytes // h
    a, index = torch.randn(6, k).double(), torch.tensor([4, 0, 4])
    C = torch.randn(2, k).double()
    one, other = ({"t": (torch.randn(h * 4, rank).double(), torch.randn(5, rank).double())} for _ in range(2))

    def everything(jacobian: Jacobian) -> list[Tensor]:
        point = jacobian.at(one)
        along, moved = jacobian.along(one, other)
        times, back = jacobian.adjoint_products(a)["t"]
        return [
            point.forward(), *point.adjoint(a)["t"], point.differential(other), moved, *along.adjoint(a)["t"],
            *point.curvature(other, lambda z, examples: z * (1 + examples)[:, None])["t"],
            point.moved_by_u("t"), point.moved_by_v("t"),
            jacobian.forward({"t": one["t"][0] @ one["t"][1].T}), jacobian.adjoint(a)["t"], jacobian.gram(),
            times(other["t"][1]), back(other["t"][0]), jacobian.extents["t"].sizes, jacobian.dense()["t"],
        ]  # fmt: skip

    def changed(jacobian: Jacobian) -> list[Jacobian]:
        of_one = jacobian.combine_outputs(C[:1]).combine_outputs(C[:, :1])  # to one output, and to two
        return [jacobian, jacobian.combine_outputs(C), jacobian.select(index), of_one]

    for ours, theirs in zip(changed(short), changed(dense), strict=True):
        assert isinstance(ours.layers["t"], BandedRows)
        a = torch.randn_like(theirs.zeros())
        for mine, reference in zip(everything(ours), everything(theirs), strict=True):
            close(mine, reference)
    part = bands.run(1, 3)
    assert torch.equal(part.g, rows.run(1, 3).g)
    assert torch.equal(part.x, rows.run(1, 3).x)
    assert torch.equal(part.counts, rows.run(1, 3).counts)
    assert not bands.select(torch.tensor([], dtype=torch.long)).x.numel()


def test_no_product_makes_the_columns_that_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: BandedRows) -> Tensor:
        raise AssertionError("all columns of g were made")

    rows = found(banded(6, 4, 2, 2, 3))
    jacobian = Jacobian({"t": rows})
    monkeypatch.setattr(BandedRows, "g", property(refuse))
    with pytest.raises(AssertionError, match="all columns"):
        jacobian.dense()
    a, one = torch.randn(6, 2).double(), {"t": (torch.randn(12, 2).double(), torch.randn(5, 2).double())}
    for changed in (jacobian, jacobian.to(torch.float32).to(torch.float64), jacobian.select([3, 1])):
        own = torch.randn_like(changed.zeros())
        point = changed.at(one)
        point.curvature(one, lambda z, _: z)
        point.moved_by_u("t")
        changed.adjoint(own)
        changed.adjoint_products(own)["t"][0](one["t"][1])
        changed.gram()
        assert changed.extents
        assert changed.is_finite()
    inner, _ = restrict(jacobian.combine_outputs(torch.ones(1, 2).double()))
    inner.adjoint(a[:, :1])
    assert concatenate([jacobian, jacobian]).nbytes == 2 * jacobian.nbytes


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_the_span_of_bands_is_that_of_their_rows(n: int, k: int) -> None:
    rows = banded(n, 3, 1, k, 5)
    ours, span = restrict(Jacobian({"t": found(rows)}))
    theirs, other = restrict(Jacobian({"t": rows}))
    assert isinstance(ours, Jacobian)
    assert isinstance(ours.layers["t"], BandedRows)
    assert ours.shapes == theirs.shapes
    assert (span.columns["t"] is None) == (n * k >= 5)
    close(ours.gram(), theirs.gram())
    A, B = span.columns["t"], other.columns["t"]
    if A is not None and B is not None:
        close(A.T @ A, torch.eye(A.shape[1]).double())
        close(A @ A.T, B @ B.T)


def test_a_basis_that_mixes_the_bands_takes_all_columns() -> None:
    rows = banded(4, 2, 1, 1, 3)
    A, B = torch.randn(6, 2).double(), torch.randn(5, 3).double()
    mixed = found(rows).project(B, A)
    assert isinstance(mixed, LayerRows)
    close(Jacobian({"": mixed}).dense()[""], A.T @ Jacobian({"": rows}).dense()[""] @ B)
    close(mixed.g, rows.project(B, A).g)


def test_rows_are_in_bands_where_they_are_many_and_have_all_columns_where_they_are_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = banded(6, 2, 1, 1, 3)
    assert in_bands(rows) is rows  # few enough to be one product
    few = unfolded(found(rows))
    assert isinstance(few, LayerRows)
    assert torch.equal(few.g, rows.g)
    monkeypatch.setattr(module, "_BANDED", 0)
    many = in_bands(rows)
    assert isinstance(many, BandedRows)
    assert in_bands(many) is unfolded(many) is many
    for changed in (
        Jacobian({"t": rows}).to(torch.float32),
        Jacobian({"t": rows}).combine_outputs(torch.ones(1, 1).double()),
        restrict(Jacobian({"t": rows}))[0],
    ):
        assert isinstance(changed, Jacobian)
        assert isinstance(changed.layers["t"], BandedRows)


def test_parts_with_other_bands_are_joined_with_all_columns() -> None:
    one, other = banded(2, 4, 1, 2, 3), banded(3, 2, 2, 2, 6, seed=1)
    whole = concatenate([Jacobian({"t": found(rows)}) for rows in (one, other)]).layers["t"]
    assert isinstance(whole, LayerRows)
    assert torch.equal(whole.g, torch.cat([one.g, other.g]))
    assert whole.counts.tolist() == [4] * 5


def test_one_number_outside_its_band_joins_the_bands() -> None:
    rows = banded(6, 4, 1, 2, 3)
    assert len(found(rows).bands) == 4
    spoilt = rows.g.clone()
    spoilt[9, 1, 5] = 1e-30  # example 2, band 1: its columns are 3 to 5
    assert len(found(replace(rows, g=spoilt)).bands) == 4
    spoilt[9, 1, 0] = 1e-30
    assert len(found(replace(rows, g=spoilt)).bands) == 2  # bands 0 and 1 are one now
    spoilt[9, 1, 11] = 1e-30
    assert find_bands(replace(rows, g=spoilt)) is None


def test_uneven_rows_have_no_bands() -> None:
    rows = banded(6, 2, 1, 1, 3)
    counts = rows.counts.clone()
    counts[0], counts[1] = 1, 3
    assert find_bands(replace(rows, counts=counts)) is None
    assert find_bands(LayerRows(rows.x[:0], rows.g[:0], counts[:0])) is None
