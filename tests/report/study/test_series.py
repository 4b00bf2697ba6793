"""Mean and standard deviation over seeds, against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tangentlora.report.study.series import band_of, log_mean_of, mean_of


def test_a_mean_leaves_out_what_is_not_known() -> None:
    found = mean_of([3.0, None, 1.0, 8.0])
    assert found is not None
    assert found.mean == pytest.approx(4.0)
    assert found.std == pytest.approx(np.std([3, 1, 8], ddof=1))
    assert (found.n, found.largest) == (3, 8.0)
    assert mean_of([None]) is None
    one = mean_of([2.0])
    assert one is not None
    assert (one.mean, one.std, one.n) == (2.0, 0.0, 1)


def test_a_mean_of_logarithms_is_floored() -> None:
    found = log_mean_of([1e-2, -1e-12, 1e-4], 1e-6)
    assert found is not None
    std = np.std([-2, -6, -4], ddof=1)
    assert found == pytest.approx((1e-4, 10 ** (-4 - std), 10 ** (-4 + std)))
    assert log_mean_of([None], 1e-6) is None


def test_a_band_holds_the_mean_of_interpolated_runs() -> None:
    band = band_of([[(0, 1.0), (10, 0.0)], [(0, 3.0), (5, 1.0), (20, 1.0)]])
    assert band is not None
    assert band.epochs == (0, 5, 10, 20)
    # The first run is 1, 0.5, 0 and keeps 0 after it ended; the second is 3, 1, 1, 1.
    assert band.mean == pytest.approx((2.0, 0.75, 0.5, 0.5))
    std = [np.std(pair, ddof=1) for pair in ((1, 3), (0.5, 1), (0, 1), (0, 1))]
    assert band.high == pytest.approx(np.array(band.mean) + std)
    assert band.low == pytest.approx(np.array(band.mean) - std)
    assert band.n == 2


def test_a_band_ends_where_a_run_is_not_finite() -> None:
    band = band_of([[(0, 1.0), (10, 9.0), (20, None), (30, 1.0)], [(0, 1.0), (10, 1.0), (20, 1.0)]])
    assert band is not None
    assert band.epochs == (0, 10)
    assert band_of([[(0, None)], [(0, 1.0)]]) is None
    assert band_of([]) is None


def test_a_band_of_one_run_has_no_width_and_a_floor() -> None:
    band = band_of([[(0, 1.0), (1, 1e-3), (2, -1.0)]], floor=1e-6)
    assert band is not None
    assert band.mean == band.low == band.high == pytest.approx((1.0, 1e-3, 1e-6))
