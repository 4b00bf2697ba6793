"""Audits of adapters that PEFT trained: four kinds of runs get four verdicts, and each is right."""

from __future__ import annotations

import pytest

from audited_cases import Case, gpt2, minilm, vit
from tangentlora.studies.audit_report import Audit
from tangentlora.theory.regime import Verdict
from tangentlora.theory.stationarity import Kind
from tangentlora.theory.training import REST, WORTH, TrainingVerdict

V = TrainingVerdict
EXPECTED = {
    "undertrained": V.UNDERTRAINED,
    "limited": V.RANK_LIMITED,
    "right": V.CONVERGED,
    "at another λ": V.UNDERTRAINED,
    "at the fitted λ": V.CONVERGED,
    "wasteful": V.WASTEFUL,
}
"""The two in the middle are the adapter `right`, held against other penalties."""


@pytest.fixture(scope="module", params=[vit, gpt2, minilm], ids=lambda make: make.__name__)
def audits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Audit]:
    """The audit of each run on one network."""
    case: Case = request.param(tmp_path_factory.mktemp("case"))
    runs = {
        "undertrained": (case.right, case.few),
        "limited": (1, 600),
        "right": (case.right, 600),
        "wasteful": (64, 600),
    }
    found = {}
    for name, (rank, steps) in runs.items():
        model = case.train(rank, steps)
        found[name] = case.audit(model)
        if name == "right":
            found["at another λ"] = case.audit(model, lam=2 * case.decay, local=False)
            found["at the fitted λ"] = case.audit(model, lam=None, local=False)
        model.unload()  # the network is the next run's
    return found


def test_four_kinds_of_runs_get_four_verdicts(audits: dict[str, Audit]) -> None:
    assert {name: found.verdict for name, found in audits.items()} == EXPECTED
    assert [found.satisfied for found in audits.values()] == [False, False, True, False, True, True]
    fitted = audits["at the fitted λ"].lam
    assert fitted.source == "fitted"
    (chosen,), (trained,) = set(fitted.values.values()), set(audits["right"].lam.values.values())
    assert chosen == pytest.approx(trained, rel=0.01)


def test_the_verdicts_are_right(audits: dict[str, Audit], request: pytest.FixtureRequest) -> None:
    F = {name: found.objective for name, found in audits.items()}
    assert F["right"] < (1 - WORTH) * F["undertrained"]  # more training at this rank did lower F
    assert F["right"] < (1 - WORTH) * F["limited"]  # so did more rank
    if audits["right"].local.regime.verdict is not Verdict.OUTSIDE:  # elsewhere there are other minima
        assert F["wasteful"] == pytest.approx(F["right"], rel=WORTH)  # and here more rank did not
    needed = audits["wasteful"].judged.needed
    assert 2 <= needed <= audits["right"].judged.rank < 64
    assert audits["undertrained"].judged.slope > 10 * REST
    assert max(audits[name].judged.slope for name in ("limited", "right", "wasteful")) < REST / 2
    assert audits["limited"].gain is not None
    assert audits["right"].gain is None
    assert all(found.lam.fit.explained > 0.999 for name, found in audits.items() if name != "undertrained")


def test_the_local_problem_agrees(audits: dict[str, Audit]) -> None:
    audits = {name: found for name, found in audits.items() if found.local is not None}
    assert len(audits) == 4
    shares = {name: found.local.certificate.gap / found.objective for name, found in audits.items()}
    assert shares["right"] < 0.005
    assert shares["wasteful"] < 0.005
    assert min(shares["limited"], shares["undertrained"]) > 0.05
    assert audits["undertrained"].local.point.kind is Kind.NOT_STATIONARY
    assert audits["limited"].local.point.kind is Kind.FULL_RANK_SOSP
    assert audits["wasteful"].local.point.kind is Kind.RANK_DEFICIENT_SOSP
    for found in audits.values():
        certificate, chosen = found.local.certificate, set(found.lam.values.values())
        assert certificate.objective == pytest.approx(found.objective, rel=1e-5)  # the same point
        assert chosen == {certificate.lam}
        assert max(found.local.reduced.values()) <= max(x.used for x in found.found.layers.values())


def test_the_verdict_comes_first_and_says_its_numbers(audits: dict[str, Audit]) -> None:
    for name, found in audits.items():
        text = found.text()
        assert text.startswith(EXPECTED[name].value.split(":")[0])
        assert max(map(len, text.splitlines())) <= 100
        said = " ".join(text.split())
        assert found.judged.sentence() in said
        assert ("AdamW" in said) == (found.lam.source in ("weight decay", "fitted"))
        if found.local is not None:
            assert found.local.regime.verdict.value in said
