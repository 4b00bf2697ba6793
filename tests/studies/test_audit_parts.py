"""What an audit measures, one by one, against PEFT's own model; and what it cannot say, with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from audited_cases import Case, vit
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tangentlora.studies import audit_local
from tangentlora.studies.audit import audit, audit_opened
from tangentlora.studies.audit_report import Audit
from tangentlora.studies.opened import Opened, open_live
from tangentlora.theory.first_order import escape_factors
from tangentlora.theory.training import TrainingVerdict

SCALING = 2.0


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def model(case: Case) -> Iterator[Any]:
    """PEFT's model after a few steps, with a scaling that is not 1."""
    made = case.train(3, 6, lora_alpha=3 * SCALING)
    yield made
    made.unload()


@pytest.fixture(scope="module")
def opened(case: Case, model: Any) -> Iterator[Opened]:
    with open_live(model, case.processor, case.readout, case.splits) as found:
        yield found


@pytest.fixture(scope="module")
def found(case: Case, opened: Opened) -> Audit:
    return audit_opened(opened, weight_decay=case.decay)


def labels(case: Case) -> Tensor:
    return torch.tensor(case.splits.train.labels)


def real_objective(opened: Opened, factors: Any, lam: float) -> float:
    """Return the real objective by torch's own cross-entropy."""
    examples = opened.splits.train
    with attached(opened.network.module, opened.targets, factors):
        z = opened.network.predict(examples.inputs).double()
    squares = sum(float(w.double().square().sum()) for pair in factors.values() for w in pair)
    loss = torch.nn.functional.cross_entropy(z, torch.tensor(examples.labels))
    return float(loss) + lam / 2 * squares


def test_losses_and_accuracies_are_those_of_peft_s_model(case: Case) -> None:
    made = case.train(2, 3)
    before = {name: w.clone() for name, w in made.state_dict().items()}
    audited = case.audit(made, local=False)
    pixels = case.processor(list(case.splits.train.inputs), return_tensors="pt")
    with torch.no_grad():
        z = made(**pixels).logits
        with made.disable_adapter():
            base = made(**pixels).logits
    for outputs, scores in ((z, audited.after), (base, audited.before)):
        loss = torch.nn.functional.cross_entropy(outputs, labels(case))
        assert scores.loss == pytest.approx(float(loss), rel=1e-4)
        assert scores.accuracy == float((outputs.argmax(1) == labels(case)).double().mean())
    after = made.state_dict()
    assert all(torch.equal(w, after[name]) for name, w in before.items())
    assert all(w.requires_grad for name, w in made.named_parameters() if ".lora_" in name)
    made.unload()


def test_the_objective_and_both_falls_are_those_of_the_real_network(opened: Opened, found: Audit) -> None:
    (lam,) = set(found.lam.values.values())
    start = {t: audit_local.balance(u.double(), v.double()) for t, (u, v) in opened.factors.items()}
    assert found.objective == pytest.approx(real_objective(opened, start, lam), rel=1e-6)
    escaped = real_objective(opened, escape_factors(start, found.found, found.gain.step), lam)
    assert found.gain.relative == pytest.approx(1 - escaped / found.objective, abs=1e-6)
    assert found.gain.relative > 0
    leaves = {t: tuple(w.clone().requires_grad_() for w in pair) for t, pair in start.items()}
    (batch,) = opened.network.batches(opened.network.reader.encode(opened.splits.train.inputs))
    with attached(opened.network.module, opened.targets, leaves):
        y = torch.tensor(opened.splits.train.labels)[list(batch.index)]
        loss = torch.nn.functional.cross_entropy(opened.network.outputs(batch), y)
    loss.backward()
    step = found.remaining.step
    moved = {
        t: tuple(w.detach() - step * (w.grad + lam * w.detach()) for w in pair) for t, pair in leaves.items()
    }
    fallen = real_objective(opened, moved, lam)
    assert found.remaining.relative == pytest.approx(1 - fallen / found.objective, abs=1e-5)
    assert found.remaining.relative > 0.01


@pytest.mark.parametrize(("local", "batch_size"), [(False, 32), (False, 5), (True, 32)])
def test_the_passes_over_the_data_are_counted(
    opened: Opened, case: Case, local: bool, batch_size: int
) -> None:
    rows = {True: 0, False: 0}

    def count(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        rows[torch.is_grad_enabled()] += len(output.logits)

    handle = opened.network.module.register_forward_hook(count, with_kwargs=True)
    audit_opened(opened, weight_decay=case.decay, local=local, batch_size=batch_size)
    handle.remove()
    n = len(case.splits.train)
    if local:  # two linearisations, one of a single example, a proof of each on one example, a pass at τ = ½
        assert rows[True] == 3 * n + 1 + 3
        assert rows[False] <= 6 * n + 3
    else:
        assert rows[True] == n
        assert rows[False] <= 5 * n


def test_lam_is_the_weight_decay_over_the_scaling(case: Case, found: Audit) -> None:
    assert set(found.lam.values.values()) == {case.decay / SCALING}
    assert found.lam.source == "weight decay"
    said = found.lam.sentence()
    assert "AdamW" in said
    assert "is no such penalty" in said


def test_each_source_of_lam_says_so(opened: Opened) -> None:
    def lam(given: Opened = opened, **options: Any) -> Any:
        return audit_opened(given, local=False, **options).lam

    given, recorded, fitted = lam(lam=0.5), lam(replace(opened, recorded_lam=0.25)), lam()
    assert [chosen.source for chosen in (given, recorded, fitted)] == ["given", "recorded", "fitted"]
    assert set(given.values.values()) == {0.5}
    assert set(recorded.values.values()) == {0.25}
    assert set(fitted.values.values()) == {fitted.fit.lam}
    assert "as given" in given.sentence()
    assert "records" in recorded.sentence()
    assert f"{fitted.fit.explained:.0%}" in fitted.sentence()
    assert "AdamW" in fitted.sentence()
    flipped = replace(opened, factors={t: (-u, v) for t, (u, v) in opened.factors.items()})
    none = audit_opened(flipped)
    assert none.lam.source == "none"
    assert set(none.lam.values.values()) == {0.0}
    assert "λ = 0" in none.lam.sentence()
    assert none.why_not_local is not None
    assert "λ = 0" in none.why_not_local


def test_bad_penalties_are_refused(opened: Opened) -> None:
    with pytest.raises(InputError, match="both --lam and --weight-decay"):
        audit_opened(opened, lam=0.1, weight_decay=0.1)
    with pytest.raises(InputError, match="weight decay w = -1"):
        audit_opened(opened, weight_decay=-1.0)
    with pytest.raises(InputError, match="λ = -1"):
        audit_opened(opened, lam=-1.0)


def test_a_live_model_needs_its_processor(case: Case, model: Any) -> None:
    with pytest.raises(InputError, match="without its processor"):
        audit(model, case.splits)


def test_what_is_too_much_or_undefined_is_left_out_with_the_reason(
    opened: Opened, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(given: Opened = opened, **options: Any) -> str:
        found = audit_opened(given, **({"weight_decay": case.decay} | options))
        assert found.local is None
        assert found.describe()["local"] == {"missing": found.why_not_local}
        assert f"Not looked at: {found.why_not_local}" in " ".join(found.text().split())
        return str(found.why_not_local)

    assert "not asked for" in reason(local=False)
    layers = dict(opened.adapter.layers)
    first = next(iter(layers))
    layers[first] = replace(layers[first], scaling=1.0)
    assert "λ differs" in reason(replace(opened, adapter=replace(opened.adapter, layers=layers)))
    outputs = 2 * len(case.splits.train)  # of three labels two contrasts
    monkeypatch.setattr(audit_local, "OUTPUTS", outputs - 1)
    assert f"{outputs} outputs" in reason()
    monkeypatch.setattr(audit_local, "OUTPUTS", outputs)
    assert audit_opened(opened, weight_decay=case.decay).local is not None
    monkeypatch.setattr(audit_local, "_BYTES", 1e3)
    assert "GB" in reason()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise InputError("got a layer that is called twice")

    monkeypatch.setattr(audit_local, "linearize", refuse)
    assert "called twice" in reason()


def test_theorem_1_can_decide_the_rank_needed(opened: Opened, case: Case, found: Audit) -> None:
    """Three examples fix so little that fewer columns give their outputs."""
    few = replace(opened, splits=replace(case.splits, train=case.splits.train.select((0, 1, 8)), test=None))
    audited = audit_opened(few, weight_decay=case.decay)
    assert audited.reduced
    assert audited.judged.needed == max(audited.local.reduced.values())
    assert audited.judged.needed < max(layer.used for layer in audited.found.layers.values())
    assert "by Theorem 1" in " ".join(audited.text().split())
    assert not found.reduced
    assert "by columns used" in " ".join(found.text().split())


def test_of_many_layers_the_ones_that_matter_are_shown(found: Audit) -> None:
    quiet, loud = replace(found.found.layers[min(found.found.layers)], directions=0), 17
    layers = {f"h.{i}.attn": quiet for i in range(15)}
    layers["h.7.attn"] = replace(quiet, directions=loud)
    text = replace(found, found=replace(found.found, layers=layers)).text()
    rows = [line.split() for line in text.splitlines()]
    (row,) = [row for row in rows if row[:1] == ["7"]]
    assert str(loud) in row
    assert "Not shown: 3 layers" in text
    assert "Not shown" not in found.text()


def test_all_is_json_and_thresholds_are_said(found: Audit, opened: Opened) -> None:
    said = json.loads(json.dumps(found.describe(), allow_nan=False))
    assert said["verdict"] == TrainingVerdict.UNDERTRAINED.name
    assert set(said["thresholds"]) == {"rest", "worth", "waste", "above", "used"}
    assert set(said["layers"]) == {target.name for target in opened.targets}
    layer = next(iter(said["layers"].values()))
    assert {"force", "spectral_ratio", "directions", "effective_rank", "energy", "imbalance"} <= set(layer)
