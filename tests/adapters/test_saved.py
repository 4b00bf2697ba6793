"""Whole weights beside the factors: which modules PEFT saves them by, and adapters that bring them along."""

from __future__ import annotations

import json

import pytest
import torch

from peft_adapters import loaded_by_peft
from random_factors import random_factors
from tangentlora.adapters import read_adapter, saved_modules, write_adapter, zeroed
from tangentlora.errors import InputError
from tangentlora.models.targets import find_targets
from tiny_networks import build, tiny_module

LAYER = "bert.encoder.layer.0.attention.self.query"


def state_of(module, prefix):
    return {name: w.clone() for name, w in module.state_dict().items() if name.startswith(prefix)}


def test_whole_modules_are_named_and_nested_ones_by_the_outermost():
    bert = tiny_module("bert")
    assert saved_modules(bert, {}, (LAYER,)) == []
    assert saved_modules(bert, state_of(bert, "classifier."), (LAYER,)) == ["classifier"]
    several = state_of(bert, "classifier.") | state_of(bert, "bert.pooler.")
    assert saved_modules(bert, several, (LAYER,)) == ["bert.pooler.dense", "classifier"]


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["classifier.bias"], "part of classifier"),
        ([f"{LAYER}.weight", f"{LAYER}.bias"], f"part of {LAYER}"),
    ],
)
def test_parts_of_modules_and_adapted_layers_are_refused(names, part):
    bert = tiny_module("bert")
    saved = {name: bert.state_dict()[name] for name in names}
    with pytest.raises(InputError, match=f"got an adapter with weights of its own for .*{part}, expected"):
        saved_modules(bert, saved, (LAYER,))


@pytest.mark.parametrize(("kind", "prefix"), [("bert", "classifier."), ("roberta", "classifier.")])
def test_peft_loads_what_was_saved_in_place_of_the_network_s_own(kind, prefix, tmp_path):
    module, tensors, outputs = build(kind)
    targets = find_targets(module, ("query", "value"), "all")
    factors = random_factors(targets, (1, 2, 1, 2))
    own = state_of(module, prefix)
    saved = {name: w + 0.3 * torch.randn_like(w) for name, w in own.items()}
    folder = write_adapter(factors, targets, tmp_path / "a", module=module, base_model="tiny", saved=saved)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert sorted(settings["modules_to_save"]) == saved_modules(module, saved, ())
    again = read_adapter(folder)
    assert again.saved.keys() == saved.keys()
    assert all(torch.equal(again.saved[name], w) for name, w in saved.items())
    with torch.no_grad():
        for target in targets:
            u, v = factors[target.name]
            target.weight(module).add_((u @ v.T).float())
        module.load_state_dict(saved, strict=False)
        expected = outputs(tensors)
        fresh, _, _ = build(kind)
        loaded = loaded_by_peft(fresh, folder)
        found = loaded(**tensors).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_zeros_stand_in_for_a_while():
    bert = tiny_module("bert")
    own = state_of(bert, "classifier.")
    with zeroed(bert, own):
        assert not any(bool(w.any()) for w in state_of(bert, "classifier.").values())
    assert all(torch.equal(w, own[name]) for name, w in state_of(bert, "classifier.").items())
