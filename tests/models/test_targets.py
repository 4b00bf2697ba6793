"""Every family's query and value, by full name; the layers; and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny_networks
from tangentlora.errors import InputError
from tangentlora.models.targets import find_targets

# family: names of the two matrices with N for the layer, shape of query, shape of value
FAMILIES = {
    "bert": ("bert.encoder.layer.N.attention.self.query", "bert.encoder.layer.N.attention.self.value"),
    "roberta": (
        "roberta.encoder.layer.N.attention.self.query",
        "roberta.encoder.layer.N.attention.self.value",
    ),
    "electra": (
        "electra.encoder.layer.N.attention.self.query",
        "electra.encoder.layer.N.attention.self.value",
    ),
    "distilbert": (
        "distilbert.transformer.layer.N.attention.q_lin",
        "distilbert.transformer.layer.N.attention.v_lin",
    ),
    "deberta-v2": (
        "deberta.encoder.layer.N.attention.self.query_proj",
        "deberta.encoder.layer.N.attention.self.value_proj",
    ),
    "gpt2": ("transformer.h.N.attn.c_attn:query", "transformer.h.N.attn.c_attn:value"),
    "llama": ("model.layers.N.self_attn.q_proj", "model.layers.N.self_attn.v_proj"),
    "vit": ("vit.layers.N.attention.q_proj", "vit.layers.N.attention.v_proj"),
    "clip": (
        "vision_model.encoder.layers.N.self_attn.q_proj",
        "vision_model.encoder.layers.N.self_attn.v_proj",
    ),
    "wav2vec2": ("wav2vec2.encoder.layers.N.attention.q_proj", "wav2vec2.encoder.layers.N.attention.v_proj"),
    "whisper": ("encoder.layers.N.self_attn.q_proj", "encoder.layers.N.self_attn.v_proj"),
}


def names(targets):
    return [target.name for target in targets]


@pytest.mark.parametrize("family", FAMILIES)
def test_query_and_value_of_every_family(family):
    module = tiny_networks.tiny_module(family)
    expected = FAMILIES[family]
    assert names(find_targets(module)) == [name.replace("N", "1") for name in expected]
    both = [name.replace("N", layer) for layer in "01" for name in expected]
    assert names(find_targets(module, layers="all")) == both
    assert names(find_targets(module, layers="0")) == both[:2]
    assert names(find_targets(module, layers="-1,0")) == both
    for target in find_targets(module):
        weight = target.weight(module)
        assert tuple(weight.shape) == target.shape
        grouped = family == "llama" and target.name.endswith("v_proj")
        assert target.shape == ((16, 32) if grouped else (32, 32))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_output_is_one_matrix_per_layer(family):
    found = find_targets(tiny_networks.tiny_module(family), ["output"], "all")
    assert len(found) == 2
    assert all(target.shape == (32, 32) and "mlp" not in target.name for target in found)


def test_gpt2_rows_are_the_thirds_of_the_fused_weight():
    module = tiny_networks.tiny_module("gpt2")
    query, key, value = find_targets(module, ["value", "key", "query"])
    assert [t.name.split(":")[1] for t in (query, key, value)] == ["query", "key", "value"]
    attention = module.transformer.h[1].attn
    x = torch.randn(5, 32)
    q, k, v = attention.c_attn(x).split(32, dim=-1)
    for target, part, third in ((query, q, 0), (key, k, 1), (value, v, 2)):
        assert target.rows == (32 * third, 32 * third + 32)
        assert target.transposed
        bias = attention.c_attn.bias[32 * third : 32 * third + 32]
        torch.testing.assert_close(x @ target.weight(module).T + bias, part)


def test_writing_into_the_view_writes_into_the_network():
    module = tiny_networks.tiny_module("gpt2")
    target = find_targets(module, ["value"])[0]
    target.weight(module).zero_()
    stored = module.transformer.h[1].attn.c_attn.weight
    assert stored[:, 64:].abs().max() == 0
    assert stored[:, :64].abs().min() > 0


def test_whole_fused_weight_by_name():
    module = tiny_networks.tiny_module("gpt2")
    (target,) = find_targets(module, ["c_attn"])
    assert (target.name, target.shape, target.rows) == ("transformer.h.1.attn.c_attn", (96, 32), None)
    assert target.transposed


def test_names_of_targets_find_the_same_targets():
    for family in FAMILIES:
        module = tiny_networks.tiny_module(family)
        found = find_targets(module, layers="0")
        assert find_targets(module, names(found), layers="last") == found


def test_suffix_and_comma_separated_string():
    module = tiny_networks.tiny_module("bert")
    expected = ["bert.encoder.layer.1.attention.self.key", "bert.encoder.layer.1.output.dense"]
    assert names(find_targets(module, "self.key, 1.output.dense")) == expected


def test_components_are_matched_whole():
    """Layer 1 is not layer 11, and `lin` is not the end of `q_lin`."""
    layers = nn.ModuleList(nn.ModuleDict({"query": nn.Linear(3, 3)}) for _ in range(12))
    module = nn.ModuleDict({"layer": layers})
    assert names(find_targets(module, ["query"], "1")) == ["layer.1.query"]
    assert names(find_targets(module, ["query"], "last")) == ["layer.11.query"]
    with pytest.raises(InputError, match="lin"):
        find_targets(tiny_networks.tiny_module("distilbert"), ["lin"])


def test_last_is_the_last_of_every_stack():
    stack = [nn.ModuleDict({"q_proj": nn.Linear(3, 3), "k_proj": nn.Linear(3, 3)}) for _ in range(5)]
    module = nn.ModuleDict(
        {
            "encoder": nn.ModuleDict({"layers": nn.ModuleList(stack[:3])}),
            "decoder": nn.ModuleDict({"layers": nn.ModuleList(stack[3:])}),
        }
    )
    assert names(find_targets(module, ["query"])) == ["encoder.layers.2.q_proj", "decoder.layers.1.q_proj"]
    assert names(find_targets(module, ["query"], "2")) == ["encoder.layers.2.q_proj"]
    full = ["encoder.layers.0.q_proj"]
    assert names(find_targets(module, full)) == full
    with pytest.raises(InputError, match=r"encoder.layers has 3, decoder.layers has 2"):
        find_targets(module, ["query"], "3")


def test_modules_outside_layers_ignore_the_layers():
    module = tiny_networks.tiny_module("roberta")
    found = names(find_targets(module, ["classifier.dense"], "last"))
    assert found == ["classifier.dense"]
    # A role means attention: the head's out_proj is not an attention output.
    assert "classifier.out_proj" not in names(find_targets(module, ["output"]))


def test_unknown_module_lists_what_there_is():
    with pytest.raises(
        InputError, match=r"'quarry'.*role \(query, key, value, output\).*classifier, dense, key"
    ):
        find_targets(tiny_networks.tiny_module("bert"), ["quarry"])


@pytest.mark.parametrize("layers", ["first", "", "0;1", "1.5"])
def test_malformed_layers(layers):
    with pytest.raises(InputError, match="expected last, all or comma-separated indices"):
        find_targets(tiny_networks.tiny_module("bert"), layers=layers)


@pytest.mark.parametrize("layers", ["2", "0,7", "-3"])
def test_missing_layers(layers):
    with pytest.raises(InputError, match=r"expected layers that exist \(bert.encoder.layer has 2\)"):
        find_targets(tiny_networks.tiny_module("bert"), layers=layers)


def test_nothing_asked_for():
    with pytest.raises(InputError, match="no module to adapt"):
        find_targets(tiny_networks.tiny_module("bert"), [])


def test_other_module_types_are_refused():
    module = tiny_networks.tiny_module("bert")
    with pytest.raises(InputError, match="BertSelfAttention, expected a floating-point Linear"):
        find_targets(module, ["attention.self"])

    class Quantised(nn.Linear):
        def forward(self, input):
            return super().forward(input).round()

    module.bert.encoder.layer[1].attention.self.query = Quantised(32, 32)
    with pytest.raises(InputError, match="type Quantised"):
        find_targets(module)


def test_integer_weights_are_refused():
    module = tiny_networks.tiny_module("bert")
    query = module.bert.encoder.layer[1].attention.self.query
    query.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="floating-point"):
        find_targets(module)


def test_shared_weights_are_refused():
    module = tiny_networks.tiny_module("bert-mlm")
    with pytest.raises(
        InputError, match=r"shared \(bert.embeddings.word_embeddings.weight = .*decoder.weight"
    ):
        find_targets(module, ["cls.predictions.decoder"])
    module = tiny_networks.tiny_module("bert")
    layers = module.bert.encoder.layer
    layers[1].attention.self.value.weight = layers[0].attention.self.value.weight
    with pytest.raises(InputError, match="is shared"):
        find_targets(module)
    assert names(find_targets(module, ["query"])) == ["bert.encoder.layer.1.attention.self.query"]


def test_a_layer_used_twice_is_shared():
    module = tiny_networks.tiny_module("bert")
    module.bert.encoder.layer[1] = module.bert.encoder.layer[0]
    with pytest.raises(InputError, match="is shared"):
        find_targets(module)


def test_whole_and_part_of_one_weight():
    with pytest.raises(InputError, match="both whole and in part"):
        find_targets(tiny_networks.tiny_module("gpt2"), ["query", "c_attn"])
