"""Ranks that are no whole numbers, and energy, where their values are known."""

from __future__ import annotations

import math

import pytest
import torch

from tangentlora.theory.update_spectrum import UpdateSpectrum


def test_equal_values_have_the_rank_they_look_like() -> None:
    spectrum = UpdateSpectrum((2.0,) * 5 + (0.0,) * 3)
    assert spectrum.nuclear_norm == 10.0
    assert spectrum.stable_rank == pytest.approx(5.0)
    assert spectrum.effective_rank == pytest.approx(5.0)
    assert [spectrum.energy(k) for k in (0, 1, 5, 8)] == pytest.approx([0.0, 0.2, 1.0, 1.0])


def test_unequal_values_agree_with_the_definitions_on_matrices() -> None:
    delta = torch.randn(6, 9, dtype=torch.float64)
    spectrum = UpdateSpectrum(tuple(torch.linalg.svdvals(delta).tolist()))
    frobenius, spectral = (float(torch.linalg.matrix_norm(delta, order)) for order in ("fro", 2))
    assert spectrum.nuclear_norm == pytest.approx(float(torch.linalg.matrix_norm(delta, "nuc")))
    assert spectrum.stable_rank == pytest.approx(frobenius**2 / spectral**2)
    p = torch.linalg.svdvals(delta) / spectrum.nuclear_norm
    entropy = float(torch.distributions.Categorical(p).entropy())
    assert spectrum.effective_rank == pytest.approx(math.exp(entropy))
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    best = (u[:, :2] * s[:2]) @ vt[:2]
    assert spectrum.energy(2) == pytest.approx(1 - float((delta - best).norm()) ** 2 / frobenius**2)
    assert 1 < spectrum.stable_rank < spectrum.effective_rank < 6


def test_no_update_has_rank_zero() -> None:
    for values in ((), (0.0, 0.0)):
        spectrum = UpdateSpectrum(values)
        assert (spectrum.nuclear_norm, spectrum.stable_rank, spectrum.effective_rank) == (0.0, 0.0, 0.0)
        assert spectrum.energy(1) == 1.0


def test_sizes_that_squares_cannot_hold_do_no_harm() -> None:
    assert UpdateSpectrum((1e-200, 1e-200)).stable_rank == pytest.approx(2.0)
    assert UpdateSpectrum((1e-200, 1e-200)).energy(1) == pytest.approx(0.5)
