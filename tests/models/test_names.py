"""Names from earlier releases of transformers, against the names of the networks of this one."""

from __future__ import annotations

import pytest
from torch import nn

from tangentlora.models.names import current_names
from tiny_networks import KINDS, tiny_module


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_the_network_has_stand_for_themselves(kind):
    module = tiny_module(kind)
    names = list(module.state_dict())
    assert current_names(module, names) == dict(zip(names, names, strict=True))


def test_names_of_vit_are_translated():
    old = "vit.encoder.layer.1"
    now = "vit.layers.1"
    expected = {
        f"{old}.attention.attention.query.weight": f"{now}.attention.q_proj.weight",
        f"{old}.attention.attention.key.bias": f"{now}.attention.k_proj.bias",
        f"{old}.attention.attention.value.weight": f"{now}.attention.v_proj.weight",
        f"{old}.attention.output.dense.weight": f"{now}.attention.o_proj.weight",
        f"{old}.intermediate.dense.weight": f"{now}.mlp.fc1.weight",
        f"{old}.output.dense.bias": f"{now}.mlp.fc2.bias",
    }
    module = tiny_module("vit")
    assert current_names(module, expected) == expected
    assert set(expected.values()) <= set(module.state_dict())


def test_old_names_of_normalisation_are_translated():
    module = tiny_module("bert")
    names = ["bert.embeddings.LayerNorm.gamma"]
    assert current_names(module, names) == {names[0]: "bert.embeddings.LayerNorm.weight"}


def test_names_that_the_network_never_had_are_left_out():
    module = tiny_module("vit")
    assert current_names(module, ["vit.encoder.layer.9.attention.attention.query.weight", "x"]) == {}
    assert current_names(nn.Sequential(nn.Linear(2, 2)), ["0.weight", "1.weight"]) == {"0.weight": "0.weight"}
