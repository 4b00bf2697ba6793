"""Bands of columns are found where they are, and only there; their products are those of the dense rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangentlora.tangent import layer_rows as module
from tangentlora.tangent.band_products import find_bands
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.layer_rows import LayerRows


def banded(n: int, h: int, own: int, k: int, w: int, seed: int = 0) -> LayerRows:
    """Return rows of n examples, `own` in each of h bands of w columns."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.zeros(n, h, own, k, h, w, dtype=torch.float64)
    for band in range(h):
        g[:, band, :, :, band] = torch.randn(n, own, k, w, generator=generator, dtype=torch.float64)
    rows = n * h * own
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return LayerRows(x, g.reshape(rows, k, h * w), torch.full((n,), h * own))


@pytest.mark.parametrize(("h", "own", "k"), [(2, 1, 1), (3, 2, 2), (4, 1, 3)])
def test_products_band_by_band_are_those_of_the_dense_rows(
    h: int, own: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = banded(6, h, own, k, 4)
    dense = Jacobian({"t": rows})
    a = torch.randn(6, k, dtype=torch.float64)
    factors = {"t": (torch.randn(h * 4, 2).double(), torch.randn(5, 2).double())}

    def everything(jacobian: Jacobian) -> list[Tensor]:
        point = jacobian.at(factors)
        V, U = torch.ones(5, 2).double(), torch.ones(h * 4, 2).double()
        times, back = jacobian.adjoint_products(a)["t"]
        return [
            point.forward(), *point.adjoint(a)["t"], point.differential(factors), jacobian.adjoint(a)["t"],
            jacobian.gram(), times(V), back(U),
        ]  # fmt: skip

    assert rows.bands is None  # few enough to be one product
    expected = everything(dense)
    monkeypatch.setattr(module, "_BANDED", 0)
    again = LayerRows(rows.x, rows.g, rows.counts)
    assert again.bands is not None
    assert again.bands.g.shape == (h, 6 * own, k, 4)
    for found, reference in zip(everything(Jacobian({"t": again})), expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-12, atol=1e-12)


def test_one_number_outside_its_band_joins_the_bands() -> None:
    rows = banded(6, 4, 1, 2, 3)
    bands = find_bands(rows.g, rows.counts)
    assert bands is not None
    assert len(bands.g) == 4
    spoilt = rows.g.clone()
    spoilt[9, 1, 5] = 1e-30  # example 2, band 1: its columns are 3 to 5
    bands = find_bands(spoilt, rows.counts)
    assert bands is not None
    assert len(bands.g) == 4
    spoilt[9, 1, 0] = 1e-30
    bands = find_bands(spoilt, rows.counts)
    assert bands is not None
    assert len(bands.g) == 2  # bands 0 and 1 are one now
    spoilt[9, 1, 11] = 1e-30
    assert find_bands(spoilt, rows.counts) is None


def test_uneven_rows_have_no_bands() -> None:
    rows = banded(6, 2, 1, 1, 3)
    counts = rows.counts.clone()
    counts[0], counts[1] = 1, 3
    assert find_bands(rows.g, counts) is None
    assert find_bands(rows.g[:0], counts[:0]) is None
