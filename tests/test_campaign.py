"""The campaign's evaluation agrees with mpmath, and its judges say no to what is false."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "campaign"))

import extended
import forgeries
import judge
import regimes
from counts import independent_outputs
from extended import Raw, evaluate
from small_runs import small_settings
from tangentlora import Certified, certify
from tangentlora.solvers.solution import Record, Status
from tangentlora.studies.fit import fit

pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 1e-18, reason="longdouble is float64 on this machine"
)
_EPS = 1e-17  # a hundred times the unit roundoff of longdouble


def factors_of(raw: Raw, rank: int = 2, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        name: (draw.standard_normal((x.g.shape[2], rank)), draw.standard_normal((x.x.shape[1], rank)))
        for name, x in raw.layers.items()
    }


@pytest.mark.parametrize("loss", regimes.LOSSES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_values_are_those_of_mpmath_from_the_dense_jacobian(loss: str, scale: float | None) -> None:
    raw = regimes.plain(np.random.default_rng(4), loss=loss, n=3, shapes=[(4, 3), (2, 5)])
    factors = factors_of(raw)
    value = evaluate(raw, factors, scale)
    objective, dual, norms, s = in_mpmath(raw, factors, scale)
    assert abs(value.objective - objective) < _EPS * (1 + abs(objective))
    assert abs(value.dual - dual) < 10 * _EPS * (1 + abs(dual))
    assert abs(value.scale - s) < _EPS
    assert all(abs(value.norms[name] / norms[name] - 1) < _EPS for name in raw.layers)
    assert abs(value.fenchel_young - value.gap) < 10 * _EPS * (1 + abs(objective))


def in_mpmath(raw: Raw, factors: dict[str, Any], cap: float | None) -> tuple[Any, Any, dict[str, Any], Any]:
    """Return P, the dual value, ‖M_t‖₂ and s at 40 digits, each wide number rounded to longdouble."""
    from mpmath import matrix, mp, mpf, svd_r

    mp.dps = 40
    n, k = raw.f0.shape
    z = [[mpf(float(value)) for value in row] for row in raw.f0]
    nuclear = mpf(0)
    for name, layer in raw.layers.items():
        u, v = (matrix(part.tolist()) for part in factors[name])
        delta = u * v.T
        nuclear += sum(svd_r(delta, compute_uv=False))
        for row, i in enumerate(extended.owners(layer)):
            image = delta * matrix(layer.x[row].tolist())
            for j in range(k):
                z[i][j] += sum(mpf(float(g)) * image[a] for a, g in enumerate(layer.g[row, j]))
    values, gradients = [], []
    for i in range(n):
        value, gradient = loss_in_mpmath(raw, z[i], i)
        values.append(value)
        gradients.append(gradient)
    norms = {}
    for name, layer in raw.layers.items():
        block = matrix(layer.g.shape[2], layer.x.shape[1])
        for row, i in enumerate(extended.owners(layer)):
            for a in range(block.rows):
                weight = sum(gradients[i][j] * mpf(float(layer.g[row, j, a])) for j in range(k)) / n
                for b in range(block.cols):
                    block[a, b] += weight * mpf(float(layer.x[row, b]))
        norms[name] = max(svd_r(block, compute_uv=False))
    s = min(mpf(1 if cap is None else cap), mpf(raw.lam) / max(norms.values()))
    conjugates = [conjugate_in_mpmath(raw, [s * g for g in gradients[i]], i) for i in range(n)]
    linear = sum(g * mpf(float(f)) for i in range(n) for g, f in zip(gradients[i], raw.f0[i], strict=True))
    objective = sum(values) / n + mpf(raw.lam) * nuclear
    dual = s * linear / n - sum(conjugates) / n
    wide = {name: np.longdouble(str(norm)) for name, norm in norms.items()}
    return np.longdouble(str(objective)), np.longdouble(str(dual)), wide, np.longdouble(str(s))


def loss_in_mpmath(raw: Raw, z: list[Any], i: int) -> tuple[Any, list[Any]]:
    from mpmath import exp, log, mpf

    if raw.loss == "squared":
        rest = [a - mpf(float(b)) for a, b in zip(z, raw.y[i], strict=True)]
        return sum(a * a for a in rest) / 2, rest
    if raw.loss == "logistic":
        y = int(raw.y[i])
        return log(1 + exp(-y * z[0])), [-y / (1 + exp(y * z[0]))]
    total = sum(exp(a) for a in z)
    return log(total) - z[raw.y[i]], [exp(a) / total - (j == raw.y[i]) for j, a in enumerate(z)]


def conjugate_in_mpmath(raw: Raw, a: list[Any], i: int) -> Any:
    from mpmath import log, mpf

    if raw.loss == "squared":
        return sum(b * b / 2 + b * mpf(float(y)) for b, y in zip(a, raw.y[i], strict=True))
    if raw.loss == "logistic":
        q = -int(raw.y[i]) * a[0]
        return q * log(q) + (1 - q) * log(1 - q)
    q = [b + (j == raw.y[i]) for j, b in enumerate(a)]
    return sum(b * log(b) for b in q)


def test_singular_values_are_right_at_every_scale() -> None:
    draw = np.random.default_rng(0)
    u, v = draw.standard_normal((7, 3)), draw.standard_normal((5, 3))
    exact = np.linalg.svd(u @ v.T, compute_uv=False)[:3]
    for power in (-300, 0, 150):
        scale = np.longdouble(10) ** power
        found = extended.product_singular_values(scale * u.astype(np.longdouble), v.astype(np.longdouble))
        np.testing.assert_allclose((found / scale).astype(float), exact, rtol=1e-13)
        norm = extended.spectral_norm(scale * (u @ v.T).astype(np.longdouble))
        np.testing.assert_allclose(float(norm / scale), exact[0], rtol=1e-13)


@pytest.mark.parametrize("regime", regimes.REGIMES)
def test_a_seed_gives_the_same_problem_twice(regime: str) -> None:
    one, two = regimes.problem(regime, 3), regimes.problem(regime, 3)
    assert one.lam == two.lam > 0
    for name, layer in one.layers.items():
        np.testing.assert_array_equal(layer.g, two.layers[name].g)
        assert np.isfinite(layer.g).all()
        assert layer.counts.sum() == len(layer.x) == len(layer.g)


@pytest.mark.parametrize("regime", ["plain", "large targets", "duplicates", "thin", "wide"])
def test_ordinary_problems_pass(regime: str) -> None:
    verdict = judge.judge(regime, 1)
    assert verdict.findings == []
    assert verdict.counts["certificates"] == 5


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("false bound", lambda c, d: replace(c, lower_bound=c.objective + 0.1 * d)),
        ("false gap", lambda c, d: replace(c, gap=0.5 * d)),
        ("false certificate", lambda c, d: replace(c, certified=True)),
        ("false number", lambda c, d: replace(c, objective=c.objective * (1 + 1e-9))),
        ("false number", lambda c, d: replace(c, factored_objective=c.factored_objective * (1 - 1e-9))),
        (
            "false norm",
            lambda c, d: replace(c, spectral_norms={k: 0.999 * v for k, v in c.spectral_norms.items()}),
        ),
        ("not finite", lambda c, d: replace(c, gap=float("nan"))),
        ("not finite", lambda c, d: replace(c, rounding=float("inf"))),
    ],
)
def test_a_certificate_that_claims_too_much_is_found(kind: str, change: Any) -> None:
    raw = regimes.plain(np.random.default_rng(1), loss="cross_entropy", n=6)
    raw = regimes.at_share(raw, 0.1)
    stated = judge.state(raw)
    optimum = judge._evaluated(raw, stated.zero() | Certified().solve(stated).factors)
    zero = stated.zero()
    honest, value = certify(stated, zero), judge._evaluated(raw, zero)
    distance = float(value.objective - optimum.objective)
    assert distance > 1e-3
    assert judge.complaints(honest, value, optimum.objective) == []
    kinds = [found for found, _ in judge.complaints(change(honest, distance), value, optimum.objective)]
    assert kind in kinds


def test_a_status_that_contradicts_the_certificate_is_found() -> None:
    raw = regimes.at_share(regimes.plain(np.random.default_rng(2), loss="logistic"), 0.1)
    stated = judge.state(raw)
    solution = Certified().solve(stated)
    zero = stated.zero()
    value = judge._evaluated(raw, zero)
    wrong = replace(solution, factors=zero, status=Status.GLOBAL_OPTIMUM, history=(Record(0, 0.0, 0.0),))
    assert [kind for kind, _ in judge.claims(wrong, certify(stated, zero), value)] == [
        "contradiction",
        "worse than known",
    ]
    right = judge._evaluated(raw, zero | solution.factors)
    assert judge.claims(solution, certify(stated, solution), right) == []


def test_outputs_are_counted_by_rank_whatever_their_scale() -> None:
    raw = regimes.plain(np.random.default_rng(3), loss="cross_entropy", n=5, k=3, shapes=[(6, 7)])
    assert independent_outputs(raw) == 10
    layer = raw.layers["layer.0"]
    scales = np.repeat(10.0 ** np.arange(-10, 15, 5), layer.counts)[:, None]
    apart = replace(raw, layers={"layer.0": replace(layer, x=layer.x * scales)})
    assert independent_outputs(apart) == 10
    twice = extended.Layer(np.tile(layer.x, (2, 1)), np.tile(layer.g, (2, 1, 1)), np.tile(layer.counts, 2))
    assert (
        independent_outputs(Raw({"layer.0": twice}, np.tile(raw.f0, (2, 1)), np.tile(raw.y, 2), raw.loss, 1))
        == 10
    )
    assert judge.miscounts(10, 10, [3, 2]) == []
    assert judge.miscounts(10, 9, [3, 2]) == [("false count", "9 independent outputs, counted 10")]
    assert judge.miscounts(10, 10, [4, 1]) == [("false count", "ranks [4, 1] need 11 of 10")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified run of a tiny network."""
    folder = tmp_path_factory.mktemp("made")
    fit(small_settings(folder), folder / "run")
    return folder / "run"


def test_a_forgery_that_is_accepted_is_found(run: Path) -> None:
    found = forgeries.attempt(run, lambda folder: None, seal=True)
    assert found is not None
    assert found.startswith("accepted: Valid")


def test_checksums_are_redone_where_they_are_asked_to_be(run: Path) -> None:
    respelled = forgeries.edit_json("certificate.json", lambda certificate: None)  # without indentation
    assert forgeries.attempt(run, respelled, seal=False) is None
    assert str(forgeries.attempt(run, respelled, seal=True)).startswith("accepted: Valid")


def test_an_exception_in_place_of_a_sentence_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(forgeries, "verify", broken)
    assert forgeries.attempt(run, lambda folder: None, seal=True) == "ZeroDivisionError: by zero"


def test_every_part_of_a_run_is_forged(run: Path) -> None:
    made = [what for what, _, _ in forgeries.forgeries(run, run)]
    assert len(made) >= 150
    assert {what.split(":")[0] for what in made} >= {"certificate", "run.json", "answer", "adapter", "store"}
    assert len(set(made)) == len(made)
